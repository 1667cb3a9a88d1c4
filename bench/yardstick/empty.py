"""The least possible: a handler that answers."""


def handle(event, context):
    return {"statusCode": 204}
