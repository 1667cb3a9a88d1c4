<?php

declare(strict_types=1);

/**
 * Track and end visitor sessions from a shop's backend. Copy this file; it needs PHP 8.2 with curl.
 * Call session_start() first. No failure of the service or the network throws.
 */
final class ElevateSessions
{
    private const TRACK_EVERY = 60; // seconds; far less than the stack's SessionIdleMinutes
    private const CALL_AGAIN_AFTER = 30; // seconds, unless the answer says how many

    /** The URL is that of the stage, without a slash at the end. */
    public function __construct(private string $url, #[SensitiveParameter] private string $apiKey) {}

    /** Note that the visitor is active; false means that they signed out and need new keys. */
    public function track(array $session, bool $interactive = false): bool
    {
        // The first click and a new customerKey (sign-in) are news and do not wait.
        $news = hash('sha256', serialize($session));
        [$known, $at] = $_SESSION['elevateTracked'][(int) $interactive] ?? ['', 0];
        if ($known === $news && time() - $at < self::TRACK_EVERY) {
            return true;
        }
        // Noted even if the call fails: an outage must not slow every page.
        $_SESSION['elevateTracked'][(int) $interactive] = [$news, time()];
        $path = rawurlencode($session['sessionKey']);
        unset($session['sessionKey']);
        [$status] = $this->call('PUT', $path, $session + ($interactive ? ['interactive' => true] : []), 2);
        if ($status === 409) {
            unset($_SESSION['elevateTracked']);
        }
        return $status !== 409;
    }

    /** End a session; a number means that it was not accepted: call again after that many seconds. */
    public function end(array $session): ?int
    {
        [$status, $wait] = $this->call('POST', 'end', $session, 15);
        // 204: ended. 202: kept, and sent later by the service. Other 4xx: it would only fail again.
        return $status === 0 || $status === 429 || $status >= 500 ? $wait : null;
    }

    private function call(string $method, string $path, array $body, int $seconds): array
    {
        $curl = curl_init("$this->url/sessions/$path");
        curl_setopt_array($curl, [CURLOPT_CUSTOMREQUEST => $method, CURLOPT_POSTFIELDS => json_encode($body),
            CURLOPT_HTTPHEADER => ["x-api-key: $this->apiKey", 'content-type: application/json'],
            CURLOPT_RETURNTRANSFER => true, CURLOPT_CONNECTTIMEOUT => 1, CURLOPT_TIMEOUT => $seconds]);
        $text = curl_exec($curl);
        $status = $text === false ? 0 : curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
        if ($status === 0 || $status >= 300) { // the service's own problems name fields and hold no key
            $own = curl_getinfo($curl, CURLINFO_CONTENT_TYPE) === 'application/problem+json';
            error_log("$method session: $status " . ($status ? ($own ? $text : '') : curl_strerror(curl_errno($curl))));
        }
        $wait = curl_getinfo($curl, CURLINFO_RETRY_AFTER); // a date in the past is negative
        return [$status, $wait > 0 ? $wait : self::CALL_AGAIN_AFTER];
    }
}
