//! Who may use the embedded broker, tried by clients that we did not write; and how we get into other brokers.

mod pki;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use iot_tests::{Mosquitto, PATIENCE, Ran, Server, external, iotctl, python, run, wait_a_little, workspace};
use serde_json::{Value, json};

use pki::{Authority, Pair};

const BAD_CREDENTIALS: u64 = 0x86;
const NOT_AUTHORIZED: u64 = 0x87;
const TOPIC_NAME_INVALID: u64 = 0x90;
const QUOTA_EXCEEDED: u64 = 0x97;

/// What a paho client does, and what came of it. `None` where paho is missing.
fn paho(todo: Value) -> Option<Value> {
    let python = python("paho.mqtt.client")?;
    let script = workspace().join("tests/it/access/client.py");
    let output = Command::new(python).arg(script).arg(todo.to_string()).output().expect("python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    Some(serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}")))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// A users file in `dir` with these passwords.
fn users(dir: &Path, passwords: &[(&str, &str)]) -> PathBuf {
    let file = dir.join("users");
    for (user, password) in passwords {
        let ran = run(&["user", "add", user, "--file", text(&file)], &format!("{password}\n"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    file
}

/// A server that knows two ovens.
fn guarded(dir: &Path, extra: &[&str]) -> Server {
    let users = users(dir, &[("oven-1", "warm"), ("oven-2", "hot")]);
    let all: Vec<&str> = ["--users", text(&users)].into_iter().chain(extra.iter().copied()).collect();
    let server = Server::start(&dir.join("data"), &all);
    server.apply("kind: stream\nname: readings\ntopics: ['devices/{device_id}/#']\n");
    server
}

fn stored(server: &Server) -> i64 {
    server.number("SELECT count(*) FROM readings")
}

#[test]
fn an_unauthorised_client_cannot_connect() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    for version in [4, 5] {
        let connect = |who: Value| {
            let mut todo = json!({"port": server.port("mqtt"), "version": version});
            todo.as_object_mut().expect("an object").extend(who.as_object().expect("an object").clone());
            paho(todo).map(|done| done["connect"].as_u64())
        };
        let Some(nobody) = connect(json!({})) else { return };
        assert_eq!(nobody, Some(NOT_AUTHORIZED), "v{version}");
        for wrong in [
            json!({"user": "oven-1", "password": "cold"}),
            json!({"user": "oven-1"}),
            json!({"user": "oven-3", "password": "warm"}),
        ] {
            assert_eq!(connect(wrong.clone()), Some(Some(BAD_CREDENTIALS)), "v{version} {wrong}");
        }
        assert_eq!(connect(json!({"user": "oven-1", "password": "warm"})), Some(Some(0)));
    }
}

#[test]
fn an_unauthorised_client_cannot_publish_to_another_devices_topic() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    let me = json!({"port": server.port("mqtt"), "user": "oven-1", "password": "warm", "version": 5, "publish":
        ["devices/oven-1/a", "devices/oven-2/a", "devices/oven-1/b", "devices/oven-1", "devices/oven-11/a", "x"]});
    let Some(done) = paho(me) else { return };
    // All were sent at once: those that may be stored are, in the midst of those that may not.
    assert_eq!(
        done["pubacks"],
        json!({"devices/oven-1/a": 0, "devices/oven-2/a": NOT_AUTHORIZED, "devices/oven-1/b": 0,
            // No stream wants it, but it is the device's own.
            "devices/oven-1": 0, "devices/oven-11/a": NOT_AUTHORIZED, "x": NOT_AUTHORIZED}),
        "{done}"
    );
    assert_eq!(done["lost"], false);
    let own = server.number("SELECT count(*) FROM readings WHERE device_id = 'oven-1'");
    assert_eq!(stored(&server), own, "nothing of another device");
    assert_eq!(server.status()["ingest"]["unauthorized"], 3, "{}", server.status()["ingest"]);

    // MQTT 3.1.1 has no word for it, so the connection ends and the message is not acknowledged.
    let before = stored(&server);
    let me = json!({"port": server.port("mqtt"), "user": "oven-1", "password": "warm", "version": 4,
        "publish": ["devices/oven-1/c", "devices/oven-2/c"]});
    let done = paho(me).expect("paho is there");
    assert_eq!((&done["lost"], done["pubacks"].get("devices/oven-2/c")), (&json!(true), None), "{done}");
    assert_eq!(stored(&server), before + 1);
}

#[test]
fn a_will_needs_a_topic_that_the_client_may_publish() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    // The connection ends without a word, so the will, if there is one, is due.
    let connect = |will: &str, version: u8| {
        let me = json!({"port": server.port("mqtt"), "user": "oven-1", "password": "warm", "version": version,
            "will": will});
        paho(me).map(|done| done["connect"].as_u64().expect("an answer"))
    };
    for filter in ["devices/oven-1/#", "devices/oven-1/+/a", "#write/readings"] {
        let Some(answer) = connect(filter, 5) else { return };
        assert_eq!((answer, connect(filter, 4)), (TOPIC_NAME_INVALID, Some(NOT_AUTHORIZED)), "{filter}");
    }
    assert_eq!(connect("devices/oven-2/a", 5), Some(0), "it is let in without the will");
    assert_eq!(connect("devices/oven-1/a", 5), Some(0));
    server.wait_for("the good will, and all refusals", |status| {
        status["ingest"]["messages"] == 1 && status["ingest"]["unauthorized"] == 7
    });
    assert_eq!((stored(&server), server.number("SELECT count(*) FROM dead")), (1, 0));
}

#[test]
fn a_flood_to_another_devices_topic_is_neither_stored_nor_acknowledged() {
    let Some(mosquitto_pub) = external("mosquitto_pub") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    for (version, qos) in [("mqttv311", "1"), ("mqttv311", "0"), ("mqttv5", "0"), ("mqttv5", "2")] {
        let script = format!(
            "seq 500 | {} -p {} -u oven-1 -P warm -V {version} -q {qos} -l -t devices/oven-2/a",
            text(&mosquitto_pub),
            server.port("mqtt")
        );
        let _ = Command::new("timeout").args(["5", "sh", "-c", &script]).output().expect("it runs");
    }
    assert_eq!(
        server.number("SELECT count(*) FROM readings") + server.number("SELECT count(*) FROM dead"),
        0
    );
    assert!(server.status()["ingest"]["unauthorized"].as_u64() > Some(0));
}

#[test]
fn an_unauthorised_client_cannot_subscribe() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    for version in [4, 5] {
        let me = json!({"port": server.port("mqtt"), "user": "oven-1", "password": "warm", "version": version,
            "subscribe": ["devices/oven-1/#", "#", "devices/oven-2/#", "devices/+/a", "$share/g/devices/oven-2/a"]});
        let Some(done) = paho(me) else { return };
        let refused = if version == 4 { 0x80 } else { NOT_AUTHORIZED };
        assert_eq!(
            done["subacks"],
            json!({"devices/oven-1/#": 1, "#": refused, "devices/oven-2/#": refused, "devices/+/a": refused,
                "$share/g/devices/oven-2/a": refused})
        );
    }
}

#[test]
fn a_client_cannot_subscribe_without_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "limits: {max_subscriptions_per_client: 2}\n").expect("written");
    let server = guarded(dir.path(), &["--config", text(&config)]);
    for (version, refused) in [(5, QUOTA_EXCEEDED), (4, 0x80)] {
        let me = json!({"port": server.port("mqtt"), "user": "oven-1", "password": "warm", "version": version,
            "subscribe": ["devices/oven-1/a", "devices/oven-1/+", "devices/oven-1/c"]});
        let Some(done) = paho(me) else { return };
        assert_eq!(
            done["subacks"],
            json!({"devices/oven-1/a": 1, "devices/oven-1/+": 1, "devices/oven-1/c": refused})
        );
    }
}

#[test]
fn a_user_gets_the_client_id_that_is_the_users_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    let connect = |user, password, version, clean| {
        let todo = json!({"port": server.port("mqtt"), "user": user, "password": password, "version": version,
            "client_id": "oven-2", "clean": clean, "expiry": 3_600, "subscribe": [format!("devices/{user}/#")]});
        paho(todo)
    };
    // Somebody else is there first, and wants to stay.
    let Some(squatter) = connect("oven-1", "warm", 4, false) else { return };
    assert_eq!(squatter["connect"], 0);
    let owner = connect("oven-2", "hot", 5, false).expect("paho is there");
    assert_eq!((&owner["connect"], &owner["session_present"]), (&json!(0), &json!(false)), "{owner}");
    for (version, clean) in [(4, false), (4, true), (5, false), (5, true)] {
        let squatter = connect("oven-1", "warm", version, clean).expect("paho is there");
        assert_eq!(squatter["connect"], NOT_AUTHORIZED);
    }
    let owner = connect("oven-2", "hot", 5, false).expect("paho is there");
    assert_eq!((&owner["connect"], &owner["session_present"]), (&json!(0), &json!(true)), "{owner}");
}

#[test]
fn whoever_is_connected_under_another_users_name_has_to_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    let connect = |user, password, extra: Value| {
        let mut todo = json!({"port": server.port("mqtt"), "user": user, "password": password, "client_id": "oven-2",
            "expiry": 3_600, "clean": false, "publish": [format!("devices/{user}/a")]});
        todo.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        paho(todo)
    };
    std::thread::scope(|scope| {
        let squatter = scope.spawn(|| connect("oven-1", "warm", json!({"linger": 5})));
        if iot_tests::python("paho.mqtt.client").is_none() {
            return;
        }
        server.wait_for("the squatter", |status| status["ingest"]["messages"] == 1);
        let owner = connect("oven-2", "hot", json!({})).expect("paho is there");
        assert_eq!((&owner["connect"], &owner["session_present"]), (&json!(0), &json!(false)), "{owner}");
        assert_eq!(owner["pubacks"], json!({"devices/oven-2/a": 0}));
        let squatter = squatter.join().expect("it ends").expect("paho is there");
        assert_eq!(squatter["lost"], true, "{squatter}");
    });
    assert_eq!(stored(&server), 2, "a packet identifier of the one is no copy of the other's");
}

#[test]
fn nobody_takes_over_the_session_of_another_user() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    let connect = |user, password, clean| {
        let todo = json!({"port": server.port("mqtt"), "user": user, "password": password, "version": 4,
            "client_id": "the-oven", "clean": clean, "subscribe": [format!("devices/{user}/#")]});
        paho(todo).map(|done| done["connect"].as_u64().expect("an answer"))
    };
    let Some(first) = connect("oven-1", "warm", false) else { return };
    assert_eq!(first, 0);
    // Neither to have it nor to throw it away.
    for clean in [false, true] {
        assert_eq!(connect("oven-2", "hot", clean), Some(NOT_AUTHORIZED));
    }
    assert_eq!(connect("oven-1", "warm", false), Some(0));
}

#[test]
fn a_password_that_changes_is_in_force_at_the_next_login() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = guarded(dir.path(), &[]);
    let port = server.port("mqtt");
    let secret = dir.path().join("secret");
    let publish = |password: &str| {
        std::fs::write(&secret, password).expect("written");
        let broker = format!("127.0.0.1:{port}");
        let login = ["--mqtt", &broker, "--mqtt-user", "oven-1", "--mqtt-password-file", text(&secret)];
        run(&[&["publish", "devices/oven-1/a", "{}"], &login[..]].concat(), "").code
    };
    assert_eq!((publish("warm"), publish("warmer")), (0, 69));
    users(dir.path(), &[("oven-1", "warmer")]);
    assert_eq!((publish("warm"), publish("warmer")), (69, 0));
    let file = dir.path().join("users");
    iotctl(&["user", "remove", "oven-1", "--file", text(&file)]);
    assert_eq!(publish("warmer"), 69);
    assert_eq!(iotctl(&["user", "list", "--file", text(&file)]), "oven-2\n");
}

/// The flags of a TLS server.
fn tls<'a>(pair: &'a Pair, extra: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec!["--tls-cert", text(&pair.cert), "--tls-key", text(&pair.key)];
    flags.extend(["--mqtts", "127.0.0.1:0", "--ws", "127.0.0.1:0", "--wss", "127.0.0.1:0"]);
    flags.extend(extra);
    flags
}

fn publish_over_tls(port: u16, topic: &str, ca: &Path, client: Option<&Pair>) -> Ran {
    let broker = format!("mqtts://localhost:{port}");
    let mut args = vec!["publish", topic, "{}", "--mqtt", &broker, "--mqtt-ca", text(ca)];
    if let Some(Pair { cert, key }) = client {
        args.extend(["--mqtt-cert", text(cert), "--mqtt-key", text(key)]);
    }
    run(&args, "")
}

#[test]
fn tls_needs_the_right_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, foreign) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "foreign"));
    let pair = ours.server();
    let server = Server::start(&dir.path().join("data"), &tls(&pair, &[]));
    let (port, topic) = (server.port("mqtts"), "devices/a/telemetry");
    let good = publish_over_tls(port, topic, &ours.pem(), None);
    assert_eq!(good.code, 0, "{}", good.stderr);
    let bad = publish_over_tls(port, topic, &foreign.pem(), None);
    assert_eq!(bad.code, 69, "{}", bad.stderr);
    assert!(bad.stderr.contains("UnknownIssuer") || bad.stderr.contains("certificate"), "{}", bad.stderr);
    let plain = run(&["publish", topic, "{}", "--mqtt", &format!("localhost:{port}")], "");
    assert_eq!(plain.code, 69, "{}", plain.stderr);
    assert_eq!(server.number("SELECT count(*) FROM events"), 1);

    if let (Some(mosquitto_pub), port) = (external("mosquitto_pub"), port.to_string()) {
        let publish = |ca: &Path| {
            let mut command = Command::new(&mosquitto_pub);
            command.args(["-h", "localhost", "-p", &port, "--cafile", text(ca)]);
            command.args(["-q", "1", "-t", topic, "-m", "{}"]).output().expect("it runs").status.success()
        };
        assert_eq!((publish(&ours.pem()), publish(&foreign.pem())), (true, false));
    }
}

#[test]
fn mutual_tls_needs_a_certificate_of_the_right_authority_and_gives_the_user() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, foreign) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "foreign"));
    let (pair, ca) = (ours.server(), ours.pem());
    let server = Server::start(&dir.path().join("data"), &tls(&pair, &["--tls-client-ca", text(&ca)]));
    let (port, own) = (server.port("mqtts"), "devices/oven-1/telemetry");
    let client = ours.client("oven-1");
    let good = publish_over_tls(port, own, &ca, Some(&client));
    assert_eq!(good.code, 0, "{}", good.stderr);
    let other = publish_over_tls(port, "devices/oven-2/telemetry", &ca, Some(&client));
    assert_eq!(other.code, 1, "{}", other.stderr);
    assert!(other.stderr.contains("NotAuthorized"), "{}", other.stderr);
    for wrong in [None, Some(foreign.client("oven-1")), Some(ours.client("+"))] {
        let refused = publish_over_tls(port, own, &ca, wrong.as_ref());
        assert_eq!(refused.code, 69, "{}", refused.stderr);
    }
    assert_eq!(
        run(&["publish", own, "{}", "--mqtt", &server.broker()], "").code,
        69,
        "no certificate, no TLS"
    );
    assert_eq!(server.number("SELECT count(*) FROM events"), 1);
}

#[test]
fn mqtt_is_spoken_over_web_sockets_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = Authority::new(dir.path(), "ours");
    let (pair, ca) = (ours.server(), ours.pem());
    let server = Server::start(&dir.path().join("data"), &tls(&pair, &[]));
    let topic = "devices/a/telemetry";
    let publish = |what, extra: Value| {
        let mut todo = json!({"port": server.port(what), "transport": "websockets", "publish": [topic]});
        todo.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        paho(todo)
    };
    for version in [4, 5] {
        let Some(done) = publish("ws", json!({"version": version})) else { return };
        assert_eq!(done["pubacks"][topic], 0, "{done}");
        let done = publish("wss", json!({"version": version, "ca": text(&ca)})).expect("paho is there");
        assert_eq!(done["pubacks"][topic], 0, "{done}");
    }
    let lost = publish("ws", json!({"path": "/elsewhere", "wait": 2})).expect("paho is there");
    assert_eq!(lost["connect"], Value::Null, "{lost}");
    assert_eq!(server.number("SELECT count(*) FROM events"), 4);
}

#[test]
fn a_foreign_web_page_cannot_use_a_web_socket_of_this_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = Server::start(&dir.path().join("open"), &["--ws", "127.0.0.1:0"]);
    let shut = guarded(dir.path(), &["--ws", "127.0.0.1:0"]);
    let publish = |server: &Server, extra: Value| {
        let mut todo = json!({"port": server.port("ws"), "transport": "websockets", "wait": 2,
            "user": "oven-1", "password": "warm", "publish": ["devices/oven-1/telemetry"]});
        todo.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        paho(todo).map(|done| done["connect"].as_u64())
    };
    let Some(foreign) = publish(&open, json!({"origin": "https://evil.example"})) else { return };
    assert_eq!(foreign, None, "nobody proves a name there");
    assert_eq!(publish(&open, json!({"origin": "http://localhost:3000"})), Some(Some(0)));
    assert_eq!(publish(&shut, json!({"origin": "https://evil.example"})), Some(Some(0)), "it has a password");
    let bad = json!({"origin": "https://evil.example", "password": "cold"});
    assert_eq!(publish(&shut, bad), Some(Some(BAD_CREDENTIALS)));
    assert_eq!(open.number("SELECT count(*) FROM events"), 1);
}

/// The status of a GET of `path` for `host`, and the answer's text.
fn get_for(server: &Server, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port("http"))).expect("connected");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {answer}")), answer)
}

#[test]
fn a_page_that_makes_its_name_lead_here_reads_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&dir.path().join("data"), &[]);
    for host in ["localhost:8080", "127.0.0.1", "[::1]:1"] {
        assert_eq!(get_for(&server, "/v1/status", host).0, 200, "{host}");
    }
    for path in ["/v1/status", "/v1/query?sql=select%201", "/v1/alerts/stream", "/"] {
        let (status, answer) = get_for(&server, path, "evil.example:8080");
        assert!(status == 403 && answer.contains("urn:iot:problem:foreign-host"), "{answer}");
        assert!(answer.contains("`evil.example:8080`") && answer.contains("token_on_loopback"), "{answer}");
    }
    assert_eq!(get_for(&server, "/healthz", "evil.example").0, 200);
}

#[test]
fn a_wrong_configuration_does_not_print_the_brokers_password() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "broker:\n  url: mqtt://iot:hunter2@h\n  client: x\n").expect("written");
    let refused = run(&["serve", "--config", text(&config)], "");
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(refused.stderr.contains("line 3") && !refused.stderr.contains("hunter2"), "{}", refused.stderr);
}

#[test]
fn one_address_cannot_take_all_places() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "limits: {max_clients_per_address: 2}\n").expect("written");
    let server = Server::start(&dir.path().join("data"), &["--config", text(&config)]);
    let connect = || TcpStream::connect(("127.0.0.1", server.port("mqtt"))).expect("it listens");
    // They do not even say who they are.
    let idle = [connect(), connect()];
    let publish = || run(&["publish", "devices/a/telemetry", "{}", "--mqtt", &server.broker()], "").code;
    assert_eq!(publish(), 69);
    drop(idle);
    let deadline = Instant::now() + PATIENCE;
    while publish() != 0 {
        assert!(Instant::now() < deadline, "their places do not become free");
        wait_a_little();
    }
}

#[test]
fn our_client_gets_into_a_mosquitto_with_tls_and_a_password() {
    let Some(mosquitto_passwd) = external("mosquitto_passwd") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path();
    let ours = Authority::new(path, "ours");
    let (pair, ca, client) = (ours.server(), ours.pem(), ours.client("gateway"));
    let passwords = path.join("passwords");
    let made = Command::new(mosquitto_passwd).args(["-b", "-c", text(&passwords), "iot", "hunter2"]).status();
    assert!(made.expect("it runs").success());
    // Mosquitto drops root for a user of its own, who must be able to read all this.
    let _ = Command::new("chmod").args(["-R", "a+rX", text(path)]).status();
    let settings = format!(
        "allow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
        text(&passwords),
        text(&ca),
        text(&pair.cert),
        text(&pair.key)
    );
    let Some(mosquitto) = Mosquitto::start_with(&settings) else { return };
    let url = format!("mqtts://localhost:{}", mosquitto.port);
    let (right, wrong) = (path.join("right"), path.join("wrong"));
    std::fs::write(&right, "hunter2\n").expect("written");
    std::fs::write(&wrong, "hunter3\n").expect("written");
    let serve = |name: &str, password: &Path| {
        let flags = [
            ["--broker", &url],
            ["--broker-ca", text(&ca)],
            ["--broker-cert", text(&client.cert)],
            ["--broker-key", text(&client.key)],
            ["--broker-user", "iot"],
            ["--broker-password-file", text(password)],
            ["--log", "debug"],
        ];
        Server::start(&path.join(name), &flags.concat())
    };
    let refused = serve("refused", &wrong);
    refused.wait_for("the refusal", |status| {
        let error = status["broker"]["last_error"].as_str().unwrap_or_default().to_owned();
        error.contains("NotAuthorized") || error.contains("BadUserNamePassword")
    });
    assert!(!refused.is_ready());
    drop(refused);

    let server = serve("data", &right);
    let deadline = Instant::now() + PATIENCE;
    while !server.is_ready() {
        assert!(Instant::now() < deadline, "{}", server.status());
        wait_a_little();
    }
    iot_tests::pause(Duration::from_millis(300));
    let login = ["--mqtt", &url, "--mqtt-user", "iot", "--mqtt-password-file", text(&right)];
    let tls = ["--mqtt-ca", text(&ca), "--mqtt-cert", text(&client.cert), "--mqtt-key", text(&client.key)];
    iotctl(&[&["publish", "devices/a/telemetry", "{}"], &login[..], &tls[..]].concat());
    server.wait_for("the message", |status| status["ingest"]["messages"] == 1);
    assert!(!server.log().contains("hunter2"), "the password is in the log");
}

#[test]
fn http_asks_for_a_token_where_it_must() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("tokens");
    let create = |name: &str, scope: &str| {
        iotctl(&["token", "create", name, "--scope", scope, "--file", text(&file)]).trim_end().to_owned()
    };
    let (reader, admin) = (create("grafana", "read"), create("ann", "admin"));
    assert!(!std::fs::read_to_string(&file).expect("a file").contains(&reader), "only hashes are kept");
    let open = Server::start(&dir.path().join("open"), &["--tokens", text(&file)]);
    assert_eq!(open.number("SELECT count(*) FROM events"), 0, "this machine needs none");
    drop(open);

    let flags = ["--tokens", text(&file), "--token-on-loopback"];
    let server = Server::start(&dir.path().join("data"), &flags);
    let catalog = dir.path().join("catalog.yaml");
    std::fs::write(&catalog, "kind: stream\nname: readings\ntopics: [x]\n").expect("written");
    let ask = |args: &[&str], token: Option<&str>| {
        let token = token.map(|token| vec!["--token", token]).unwrap_or_default();
        server.run(&[args, &token].concat(), "").code
    };
    let (query, apply) = (["query", "SELECT 1"], ["apply", "-f", text(&catalog)]);
    assert_eq!((ask(&query, None), ask(&query, Some("wrong")), ask(&query, Some(&reader))), (1, 1, 0));
    assert_eq!((ask(&apply, Some(&reader)), ask(&apply, Some(&admin))), (1, 0));
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{reader}\n")).expect("written");
    assert_eq!(ask(&["query", "SELECT 1", "--token-file", text(&secret)], None), 0);
    assert_eq!(server.get_text("/healthz").0, 200);
    let (status, problem) = server.get_text("/v1/status");
    assert!(status == 401 && problem.contains("urn:iot:problem:unauthorized"), "{problem}");
    iotctl(&["token", "revoke", "grafana", "--file", text(&file)]);
    assert_eq!(ask(&query, Some(&reader)), 1);
    assert_eq!(iotctl(&["token", "list", "--file", text(&file)]), "ann admin\n");
    assert!(!server.log().contains(&admin), "the token is in the log");
    let refused = run(&["serve", "--http", "0.0.0.0:0", "--data-dir", text(&dir.path().join("no"))], "");
    assert_eq!(refused.code, 78, "{}", refused.stderr);
}
