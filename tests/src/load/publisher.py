"""Publishes numbered readings with paho-mqtt and says on stdout which were acknowledged.

    publisher.py PORT NAME RATE QOS STRETCH

`s N`: N readings have been handed to the client; `a N N ...`: these have been acknowledged. It ends when stdin
ends and all is acknowledged, with `done`. A session that lasts, and no thought of how connections break: that
is the library's part, as it is for a gateway.
"""

import collections
import sys
import threading
import time

import paho.mqtt.client as mqtt

LIMIT = 1500
LAST_WORD_S = 90

port, name, rate, qos, stretch = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
acknowledged = collections.deque()
stopping = threading.Event()



class Client(mqtt.Client):
    """At its second attempt to connect, paho (2.2) forgets that it has released a message of QoS 2: it publishes the
    message anew, without DUP, and a broker that had completed it takes it for another one."""

    def _messages_reconnect_reset_out(self):
        for message in list(self._out_messages.values()):
            if message.state == mqtt.mqtt_ms_resend_pubrel:
                message.state = mqtt.mqtt_ms_wait_for_pubcomp
        super()._messages_reconnect_reset_out()


client = Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=mqtt.MQTTv311)
client.on_publish = lambda client, userdata, mid, code, properties: acknowledged.append(mid)
client.max_inflight_messages_set(500)
client.max_queued_messages_set(0)
client.reconnect_delay_set(0.05, 0.2)
while True:
    try:
        client.connect("127.0.0.1", port)
        break
    except OSError:
        time.sleep(0.05)
client.loop_start()
threading.Thread(target=lambda: (sys.stdin.read(), stopping.set()), daemon=True).start()


def reading(n):
    temperature = 90 if n // stretch % 2 else 20
    text = '{"ts":%d,"source":"%s","n":%d,"temperature":%d}'
    return text % (time.time() * 1000, name, n, temperature)


def report(by_mid):
    numbers = []
    while acknowledged:
        number = by_mid.pop(acknowledged.popleft(), None)
        if number is not None:
            numbers.append(str(number))
    if numbers:
        print("a", *numbers, flush=True)


sent, by_mid, started, silent_since = 0, {}, time.monotonic(), None
while True:
    if not stopping.is_set():
        due = int((time.monotonic() - started) * rate)
        while sent < due and len(by_mid) < LIMIT:
            sent += 1
            info = client.publish(f"devices/{name}-{sent % 5}/telemetry", reading(sent), qos=qos)
            by_mid[info.mid] = sent
        # What could not be sent because too much was open is not made up for.
        started += max(0, due - sent) / rate
        print("s", sent, flush=True)
    elif not by_mid:
        break
    else:
        silent_since = silent_since or time.monotonic()
        if time.monotonic() - silent_since > LAST_WORD_S:
            sys.exit(f"{len(by_mid)} readings are not acknowledged: {sorted(by_mid.values())[:10]}")
    report(by_mid)
    time.sleep(0.01)
client.disconnect()
print("done", flush=True)
