#!/bin/sh
# Put each kind of event on the stack's bus with the AWS CLI.
set -eu
: "${BUS:?the output EventBusName}" "${CUSTOMER:?a customerKey}" "${SESSION:?a sessionKey}"

# Usage: put DETAIL-TYPE DETAIL. The CLI exits with 0 even when the bus did not take the event.
put() {
    detail=$(printf '%s' "$2" | sed 's/["\\]/\\&/g')
    failed=$(aws events put-events --query FailedEntryCount --output text --entries \
        "[{\"EventBusName\": \"$BUS\", \"Source\": \"shop\", \"DetailType\": \"$1\", \"Detail\": \"$detail\"}]")
    test "$failed" = 0
}

keys="\"market\": \"UK\", \"customerKey\": \"$CUSTOMER\", \"sessionKey\": \"$SESSION\""

put "Session Active" "{$keys, \"interactive\": true}"
put "Session Ended" "{$keys}"
put "Session Sweep" '{}'
# After a wrong setting is fixed: make what Elevate rejected in a market due again.
put "Session Sweep" '{"retry": "rejected", "market": "UK"}'
