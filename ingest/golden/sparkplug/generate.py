"""Writes the golden messages with pysparkplug, an encoder that we did not write.

    pip install --no-deps pysparkplug protobuf paho-mqtt && python3 generate.py

Each message is a file NN.bin; `messages.txt` has its number and topic. `expected.txt` is written by hand, or by the
test with IOT_BLESS=1 and then read.
"""

import datetime
import pathlib

import paho.mqtt.client as paho

# pysparkplug was written for paho-mqtt 1, which had this.
if not hasattr(paho.Client, "message_retry_set"):
    paho.Client.message_retry_set = lambda client, retry: None

from pysparkplug import DataType, DBirth, DData, DDeath, Metric, NBirth, NData, NDeath
from pysparkplug._protobuf import Payload

HERE = pathlib.Path(__file__).parent
T0 = 1_700_000_000_000
UTC = datetime.timezone.utc
messages = []


def add(topic, payload):
    messages.append((topic, payload if isinstance(payload, bytes) else payload.encode(include_dtypes=False)))


def metric(name, datatype, value, **more):
    return Metric(timestamp=more.pop("at", T0), name=name, datatype=datatype, value=value, **more)


BD_SEQ = metric("bdSeq", DataType.INT64, 7)

# A node with a metric of every scalar type, at both ends of its range.
scalars = [
    ("Int8", DataType.INT8, -128), ("Int16", DataType.INT16, -32768), ("Int32", DataType.INT32, -(2**31)),
    ("Int64", DataType.INT64, -(2**63)), ("UInt8", DataType.UINT8, 255), ("UInt16", DataType.UINT16, 65535),
    ("UInt32", DataType.UINT32, 2**32 - 1), ("UInt64", DataType.UINT64, 2**63 - 1), ("Float", DataType.FLOAT, 1.5),
    ("Double", DataType.DOUBLE, 0.1), ("Boolean", DataType.BOOLEAN, True), ("String", DataType.STRING, "grün"),
    ("DateTime", DataType.DATETIME, datetime.datetime(2020, 2, 29, 12, tzinfo=UTC)), ("Text", DataType.TEXT, "a\tb"),
    ("UUID", DataType.UUID, "123e4567-e89b-12d3-a456-426614174000"), ("Bytes", DataType.BYTES, b"\x00\xff"),
    ("File", DataType.FILE, b"PK"),
]
control = metric("Node Control/Rebirth", DataType.BOOLEAN, False)
birth = [metric(name, datatype, value, alias=i) for i, (name, datatype, value) in enumerate(scalars)]
add("spBv1.0/plant/NBIRTH/line-1", NBirth(T0, 0, (BD_SEQ, control, *birth)))

# The same by alias, without names and types; one null.
data = [metric(None, datatype, value, alias=i, at=T0 + 1000) for i, (_, datatype, value) in enumerate(scalars)]
data[8] = metric(None, DataType.FLOAT, None, alias=8, at=T0 + 1000)
add("spBv1.0/plant/NDATA/line-1", NData(T0 + 1000, 1, tuple(data)))

# Arrays, by name.
arrays = [
    ("Int8s", DataType.INT8_ARRAY, (-1, 1)), ("Int16s", DataType.INT16_ARRAY, (-1, 1)),
    ("Int32s", DataType.INT32_ARRAY, (-1, 1)), ("Int64s", DataType.INT64_ARRAY, (-(2**63), 2**63 - 1)),
    ("UInt8s", DataType.UINT8_ARRAY, (0, 255)), ("UInt16s", DataType.UINT16_ARRAY, (0, 65535)),
    ("UInt32s", DataType.UINT32_ARRAY, (0, 2**32 - 1)), ("UInt64s", DataType.UINT64_ARRAY, (0, 2**64 - 1)),
    ("Floats", DataType.FLOAT_ARRAY, (0.5, -2.25)), ("Doubles", DataType.DOUBLE_ARRAY, (0.1, float("nan"))),
    ("Booleans", DataType.BOOLEAN_ARRAY, (True, False, True, True, False, False, False, False, True)),
    ("Strings", DataType.STRING_ARRAY, ("a", "", "ü")),
    ("DateTimes", DataType.DATETIME_ARRAY, (datetime.datetime(2020, 1, 1, tzinfo=UTC),)),
]
add("spBv1.0/plant/DBIRTH/line-1/arrays", DBirth(T0, 2, tuple(metric(*array) for array in arrays)))

# A device whose metrics have their own times, some of the past, one transient, one twice at the same time.
oven = [metric("Inputs/Temp", DataType.DOUBLE, 20.5, alias=100), metric("Inputs/Door open", DataType.BOOLEAN, False, alias=101)]
add("spBv1.0/plant/DBIRTH/line-1/oven", DBirth(T0, 3, tuple(oven)))
add("spBv1.0/plant/DDATA/line-1/oven", DData(T0 + 9000, 4, (
    metric(None, DataType.DOUBLE, 22.0, alias=100, at=T0 + 3000),
    metric(None, DataType.BOOLEAN, True, alias=101, at=T0 + 3000),
    metric(None, DataType.DOUBLE, 21.0, alias=100, at=T0 + 2000, is_historical=True),
    metric(None, DataType.DOUBLE, 23.0, alias=100, at=T0 + 3000),
    metric(None, DataType.BOOLEAN, False, alias=101, at=T0 + 3000, is_transient=True),
    metric(None, DataType.DOUBLE, 24.0, alias=100, at=None),
)))

# Properties, a data set, a template and its definition: pysparkplug has only the protobuf classes for them.
rich = Payload(timestamp=T0, seq=5)
pressure = rich.metrics.add(name="Pressure", alias=200, datatype=DataType.DOUBLE, double_value=1.25, timestamp=T0)
pressure.properties.keys.extend(["engUnit", "quality", "limits"])
pressure.properties.values.add(type=DataType.STRING, string_value="bar")
pressure.properties.values.add(type=DataType.INT32, int_value=192)
limits = pressure.properties.values.add(type=DataType.PROPERTYSET).propertyset_value
limits.keys.append("high")
limits.values.add(type=DataType.DOUBLE, double_value=9.5)
table = rich.metrics.add(name="Table", alias=201, datatype=DataType.DATASET, timestamp=T0).dataset_value
table.num_of_columns = 3
table.columns.extend(["id", "name", "ok"])
table.types.extend([DataType.INT8, DataType.STRING, DataType.BOOLEAN])
for identity, name, ok in [(0xFF, "a", True), (2, "b", False)]:
    row = table.rows.add()
    row.elements.add(int_value=identity)
    row.elements.add(string_value=name)
    row.elements.add(boolean_value=ok)
definition = rich.metrics.add(name="_types_/Motor", datatype=DataType.TEMPLATE, timestamp=T0).template_value
definition.is_definition = True
definition.metrics.add(name="Speed", datatype=DataType.INT32, int_value=0)
motor = rich.metrics.add(name="Motor 1", datatype=DataType.TEMPLATE, timestamp=T0).template_value
motor.template_ref = "Motor"
motor.metrics.add(name="Speed", datatype=DataType.INT32, int_value=0xFFFFFFFF)
motor.parameters.add(name="Maker", type=DataType.STRING, string_value="ACME")
inner = motor.metrics.add(name="Bearing", datatype=DataType.TEMPLATE).template_value
inner.template_ref = "Bearing"
inner.metrics.add(name="Temp", datatype=DataType.FLOAT, float_value=60.5)
add("spBv1.0/plant/DBIRTH/line-1/rich", rich.SerializeToString())

# Members of the template again, without types.
again = Payload(timestamp=T0 + 1000, seq=6)
motor = again.metrics.add(name="Motor 1", datatype=DataType.TEMPLATE, timestamp=T0 + 1000).template_value
motor.metrics.add(name="Speed", int_value=1500)
add("spBv1.0/plant/DDATA/line-1/rich", again.SerializeToString())

# A number is missing: the values are good all the same.
add("spBv1.0/plant/NDATA/line-1", NData(T0 + 5000, 9, (metric(None, DataType.INT8, 1, alias=0, at=T0 + 5000),)))
# What nobody declared, and what nobody has been born for.
add("spBv1.0/plant/NDATA/line-1", NData(T0 + 6000, 10, (metric(None, DataType.INT8, 1, alias=999, at=T0 + 6000),)))
add("spBv1.0/plant/DDATA/line-1/ghost", DData(T0 + 6000, 11, (metric("a", DataType.INT8, 1),)))
add("spBv1.0/plant/NDATA/line-2", NData(T0 + 6000, 4, (metric("a", DataType.INT8, 1),)))

# Deaths: of a device, of an older session of the node, of the present one. Then there is nothing to refer to.
add("spBv1.0/plant/DDEATH/line-1/oven", DDeath(T0 + 7000, 12))
add("spBv1.0/plant/DDATA/line-1/oven", DData(T0 + 7000, 13, (metric(None, DataType.DOUBLE, 1.0, alias=100),)))
add("spBv1.0/plant/NDEATH/line-1", NDeath(T0, metric("bdSeq", DataType.INT64, 6)))
add("spBv1.0/plant/NDATA/line-1", NData(T0 + 8000, 14, (metric(None, DataType.INT8, 2, alias=0, at=T0 + 8000),)))
add("spBv1.0/plant/NDEATH/line-1", NDeath(T0, BD_SEQ))
add("spBv1.0/plant/NDATA/line-1", NData(T0 + 9000, 15, (metric(None, DataType.INT8, 3, alias=0, at=T0 + 9000),)))

# What is no event: commands, the state of hosts.
add("spBv1.0/plant/NCMD/line-1", NData(T0, 0, (metric("Node Control/Rebirth", DataType.BOOLEAN, True),)))
add("spBv1.0/STATE/scada", b'{"online":true,"timestamp":1700000000000}')

with open(HERE / "messages.txt", "w") as index:
    for number, (topic, payload) in enumerate(messages, 1):
        (HERE / f"{number:02}.bin").write_bytes(payload)
        print(f"{number:02}", topic, file=index)
