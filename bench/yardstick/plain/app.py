"""The end function as most would write it.

boto3's resource, Tracer, event_handler, a Pydantic model; built by a plain `sam build`.
"""

import os
import time
from urllib.parse import urlencode

import boto3
import urllib3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.parser import BaseModel, parse

logger, metrics, tracer = Logger(), Metrics(), Tracer()
app = APIGatewayRestResolver()
http = urllib3.PoolManager()
table = boto3.resource("dynamodb").Table(os.environ["TABLE_NAME"])


class Session(BaseModel):
    market: str
    customerKey: str
    sessionKey: str


@app.post("/sessions/end")
@tracer.capture_method
def end():
    session = parse(event=app.current_event.json_body, model=Session)
    key = {"sessionKey": session.sessionKey, "market": session.market}
    table.put_item(Item=key | {"state": "ending", "at": int(time.time())})
    query = urlencode({f"esales.{name}": value for name, value in session.model_dump().items()})
    url = os.environ["ELEVATE_BASE_URL"] + "/api/v2/notifications/end?" + query
    answer = http.request("POST", url, timeout=3)
    table.update_item(
        Key=key,
        UpdateExpression="SET #s = :s",
        ExpressionAttributeNames={"#s": "state"},
        ExpressionAttributeValues={":s": "ended"},
    )
    metrics.add_metric("Delivered", MetricUnit.Count, 1)
    logger.info("notification", extra={"status": answer.status})
    return Response(status_code=204)


@logger.inject_lambda_context
@metrics.log_metrics
@tracer.capture_lambda_handler
def handle(event, context):
    return app.resolve(event, context)
