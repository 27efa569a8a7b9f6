"""A paho client that does what it is told and prints what came of it, as JSON.

The only argument is a JSON object: port, host, version (4 or 5), transport, ca, cert, key, user, password,
client_id, clean, expiry (seconds), will (topic), origin, publish (list of topics, all sent at once), subscribe (list of
filters), wait (seconds).
"""

import json
import ssl
import sys
import time

import paho.mqtt.client as mqtt

todo = json.loads(sys.argv[1])
version = todo.get("version", 5)
done = {"connect": None, "session_present": None, "pubacks": {}, "subacks": {}, "lost": False}
topics, filters = {}, {}
# By packet identifier: an answer may come before we know which one a message or a subscription has.
pubacks, subacks = {}, {}


def on_connect(client, userdata, flags, reason, properties):
    done["connect"] = reason.value
    done["session_present"] = flags.session_present


def on_disconnect(client, userdata, flags, reason, properties):
    done["lost"] = True


def on_publish(client, userdata, mid, reason, properties):
    pubacks[mid] = reason.value


def on_subscribe(client, userdata, mid, reasons, properties):
    subacks[mid] = reasons[0].value


arguments = {} if version == 5 else {"clean_session": todo.get("clean", True)}
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=todo.get("client_id", ""),
    protocol=version,
    transport=todo.get("transport", "tcp"),
    reconnect_on_failure=False,
    **arguments,
)
client.on_connect, client.on_disconnect = on_connect, on_disconnect
client.on_publish, client.on_subscribe = on_publish, on_subscribe
if "ca" in todo:
    client.tls_set(ca_certs=todo["ca"], certfile=todo.get("cert"), keyfile=todo.get("key"))
if todo.get("transport") == "websockets":
    client.ws_set_options(path=todo.get("path", "/mqtt"), headers={"Origin": todo["origin"]} if "origin" in todo else None)
if "will" in todo:
    client.will_set(todo["will"], '{"v": 1}', qos=1)
if "user" in todo:
    client.username_pw_set(todo["user"], todo.get("password"))


def wait(condition):
    deadline = time.monotonic() + todo.get("wait", 10)
    while not condition() and not done["lost"] and time.monotonic() < deadline:
        time.sleep(0.01)


try:
    arguments = {}
    if version == 5:
        properties = mqtt.Properties(mqtt.PacketTypes.CONNECT)
        properties.SessionExpiryInterval = todo.get("expiry", 0)
        arguments = {"clean_start": todo.get("clean", True), "properties": properties}
    client.connect(todo.get("host", "localhost"), todo["port"], **arguments)
    client.loop_start()
    wait(lambda: done["connect"] is not None)
    if done["connect"] == 0:
        for topic_filter in todo.get("subscribe", []):
            filters[client.subscribe(topic_filter, 1)[1]] = topic_filter
        wait(lambda: len(subacks) == len(filters))
        sent = [client.publish(topic, '{"v": 1}', qos=1) for topic in todo.get("publish", [])]
        topics.update((info.mid, topic) for info, topic in zip(sent, todo.get("publish", [])))
        wait(lambda: len(pubacks) == len(topics))
        # Whoever is to be thrown out is thrown out now.
        time.sleep(todo.get("linger", 0))
except (ssl.SSLError, ConnectionError, OSError, mqtt.WebsocketConnectionError) as error:
    done["error"] = repr(error)
done["pubacks"] = {topics[mid]: reason for mid, reason in pubacks.items()}
done["subacks"] = {filters[mid]: reason for mid, reason in subacks.items()}
print(json.dumps(done))
