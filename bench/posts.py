"""The bare POSTs of a sweep by the clients a user would pick, 16 at a time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

import aiohttp
import httpx
import requests
import urllib3

CONCURRENCY = 16
CONNECT, READ = 5, 10  # seconds, as hands.settings_of


def by_urllib3(urls: list[str]) -> None:
    """Post to all, as bare as can be."""
    timeout = urllib3.Timeout(CONNECT, READ)
    pool = urllib3.PoolManager(maxsize=CONCURRENCY, block=True, timeout=timeout)
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        list(threads.map(lambda url: pool.request("POST", url), urls))


def by_requests(urls: list[str]) -> None:
    """Post to all with requests."""
    with requests.Session() as http, ThreadPoolExecutor(CONCURRENCY) as threads:
        list(threads.map(lambda url: http.post(url, timeout=(CONNECT, READ)), urls))


def by_httpx(urls: list[str]) -> None:
    """Post to all with httpx's synchronous client."""
    timeout = httpx.Timeout(READ, connect=CONNECT)
    with httpx.Client(timeout=timeout) as http, ThreadPoolExecutor(CONCURRENCY) as threads:
        list(threads.map(http.post, urls))


def by_aiohttp(urls: list[str]) -> None:
    """Post to all with aiohttp, one thread and 16 tasks."""
    asyncio.run(_by_aiohttp(urls))


async def _by_aiohttp(urls: list[str]) -> None:
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT, sock_read=READ)
    async with aiohttp.ClientSession(timeout=timeout) as http:

        async def post(some: tuple[str, ...]) -> None:
            for url in some:
                async with http.post(url):
                    pass

        shares = batched(urls, -(-len(urls) // CONCURRENCY), strict=False)
        await asyncio.gather(*(post(some) for some in shares))
