"""The bench's command line, and the DynamoDB that it puts in the emulator's place."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import bench
from fixtures import dynamodb
from processes import instant_dynamodb

KEY = {"sessionKey": {"S": "k"}, "market": {"S": "UK"}}


def test_all_parts_run_unless_one_is_asked_for() -> None:
    assert bench.options([]).part is None
    assert bench.options(["--part", "growth", "10000"]).part == "growth"
    assert bench.options(["10000"]).most == 10_000


def test_an_unknown_part_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.options(["--part", "typo"])
    refusal = capsys.readouterr().err
    assert all(part in refusal for part in bench.PARTS)


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")


def test_the_instant_database_answers_as_the_registry_asks() -> None:
    with instant_dynamodb():
        client = dynamodb()
        update = {
            "TableName": "due-0",
            "Key": KEY,
            "UpdateExpression": "SET #state = :open, attempts = if_not_exists(attempts, :none)",
            "ExpressionAttributeNames": {"#state": "state"},
            "ExpressionAttributeValues": {":open": {"S": "open"}, ":none": {"N": "0"}},
            "ReturnConsumedCapacity": "TOTAL",
        }
        new = client.update_item(**update, ReturnValues="ALL_NEW")
        assert new["Attributes"] == KEY | {"state": {"S": "open"}, "attempts": {"N": "0"}}
        assert "ConsumedCapacity" in new
        old = client.update_item(**update, ReturnValues="ALL_OLD")
        assert "Attributes" not in old
        assert "ConsumedCapacity" in old
        statements = [{"Statement": 'UPDATE "due-0" SET "a" = ?', "Parameters": [{"N": "1"}]}] * 25
        assert len(client.batch_execute_statement(Statements=statements)["Responses"]) == 25


@pytest.mark.parametrize(
    ("table", "last"), [pytest.param("due-80", 10, id="all"), pytest.param("due-80-3", 3, id="up")]
)
def test_all_rows_of_the_instant_database_are_due_in_some_shard(table: str, last: int) -> None:
    with instant_dynamodb():
        client = dynamodb()
        pages = [
            client.query(
                TableName=table,
                IndexName="due",
                KeyConditionExpression="sweepShard = :shard AND dueAt <= :until",
                ExpressionAttributeValues={
                    ":shard": {"N": str(shard)},
                    ":until": {"N": str(int(time.time()))},
                },
            )["Items"]
            for shard in range(32)
        ]
    keys = {row["sessionKey"]["S"] for page in pages for row in page}
    assert (len(keys), len(pages[7]), len(pages[8])) == (80 + last % 10, last, 0)


def test_the_instant_database_takes_many_calls_at_once() -> None:
    calls, seconds = 50, 2.0
    with instant_dynamodb(int(seconds * 1000)), ThreadPoolExecutor(calls) as threads:
        client, started = dynamodb(), time.monotonic()
        list(threads.map(lambda _: client.delete_item(TableName="due-0", Key=KEY), range(calls)))
        took = time.monotonic() - started
    # One after the other they would take 100 seconds.
    assert seconds <= took < calls * seconds / 2
