"""An edge node with one device, built on pysparkplug, that does what it is told on stdin.

    node.py PORT

`data V`, `past V` (historical), `skip` (a number is lost), `ghost` (an alias that nobody declared), `down` (the device
dies), `die` (the connection breaks off), `flood N` (data 1 to N, one after the other). It says `birth N` for each birth, and `state JSON` for each state of the host
application. It is born once, and again only when it is asked to: not when its connection comes back.
"""

import os
import sys
import threading
import time

import paho.mqtt.client as paho

# pysparkplug was written for paho-mqtt 1, which had this.
if not hasattr(paho.Client, "message_retry_set"):
    paho.Client.message_retry_set = lambda client, retry: None

from pysparkplug import Client, DataType, DBirth, DData, DDeath, Message, MessageType, Metric, NBirth, NDeath, QoS, Topic

GROUP, NODE, DEVICE = "plant", "line-1", "oven"
BD_SEQ = 3
TEMPERATURE, DOOR = 1, 2
births, seq, lock, saying = 0, 0, threading.RLock(), threading.Lock()
client = Client(client_id="edge-node")


def say(*words):
    """A line in one piece: two threads speak, and `print` writes its line end apart."""
    with saying:
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()


def now():
    return int(time.time() * 1000)


def publish(kind, payload, device=None):
    topic = Topic(message_type=kind, group_id=GROUP, edge_node_id=NODE, device_id=device)
    client.publish(Message(topic=topic, payload=payload, qos=QoS.AT_LEAST_ONCE, retain=False))


def next_seq():
    global seq
    seq = (seq + 1) % 256
    return seq


def bd_seq_metric():
    return Metric(timestamp=now(), name="bdSeq", datatype=DataType.INT64, value=BD_SEQ)


def be_born():
    global births, seq
    with lock:
        births, seq = births + 1, 0
        control = Metric(timestamp=now(), name="Node Control/Rebirth", datatype=DataType.BOOLEAN, value=False)
        publish(MessageType.NBIRTH, NBirth(now(), 0, (bd_seq_metric(), control)))
        # Metrics of two moments would be two rows.
        at = now()
        temperature = Metric(at, "Inputs/Temp", DataType.DOUBLE, value=20.0, alias=TEMPERATURE)
        door = Metric(at, "Inputs/Door open", DataType.BOOLEAN, value=False, alias=DOOR)
        publish(MessageType.DBIRTH, DBirth(now(), next_seq(), (temperature, door)), DEVICE)
        say("birth", births)


def send(alias, value, is_historical=False):
    metric = Metric(now(), None, DataType.DOUBLE, value=value, alias=alias, is_historical=is_historical)
    publish(MessageType.DDATA, DData(now(), next_seq(), (metric,)), DEVICE)


def command(_client, message):
    wanted = [metric for metric in message.payload.metrics if metric.name == "Node Control/Rebirth" and metric.value]
    if wanted:
        be_born()


def connected(_client):
    if births == 0:
        be_born()


host = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="host-watcher")
host.on_connect = lambda client, *_: client.subscribe("spBv1.0/STATE/#", 1)
host.on_message = lambda _client, _data, message: say("state", message.payload.decode())
for it in (host, client._client):
    it.reconnect_delay_set(1, 1)
host.connect("127.0.0.1", int(sys.argv[1]))
host.loop_start()

will = Topic(message_type=MessageType.NDEATH, group_id=GROUP, edge_node_id=NODE)
client.set_will(Message(topic=will, payload=NDeath(now(), bd_seq_metric()), qos=QoS.AT_LEAST_ONCE, retain=False))
commands = Topic(message_type=MessageType.NCMD, group_id=GROUP, edge_node_id=NODE)
client.subscribe(commands, QoS.AT_LEAST_ONCE, command)
client.connect("127.0.0.1", port=int(sys.argv[1]), callback=connected)

for line in sys.stdin:
    word, *rest = line.split()
    while not client._client.is_connected():
        time.sleep(0.01)
    with lock:
        if word == "data":
            send(TEMPERATURE, float(rest[0]))
        elif word == "past":
            send(TEMPERATURE, float(rest[0]), is_historical=True)
        elif word == "skip":
            next_seq()
        elif word == "ghost":
            send(999, 1.0)
        elif word == "down":
            publish(MessageType.DDEATH, DDeath(now(), next_seq()), DEVICE)
        elif word == "die":
            break
    # Others may have a say in between.
    for value in range(int(rest[0]) if word == "flood" else 0):
        with lock:
            send(TEMPERATURE, float(value + 1))
        time.sleep(0.003)
    if word == "flood":
        say("flooded")
# Without a word of good-bye, so that the broker says it.
os._exit(0)
