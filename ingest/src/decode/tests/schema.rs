//! Names, types and older versions of fields, in every format.

use iot_schemas::catalog::Format;

use super::Bench;

const TOPIC: &str = "d/a";

fn bench(more: &str) -> Bench {
    Bench::new(&format!("kind: stream\nname: s\ntopics: ['d/{{device_id}}']\n{more}"))
}

/// The fields `t` and `u` (text) of one event in a format.
fn payload(format: Format, t: &str, u: &str) -> Vec<u8> {
    let json = format!("{{\"{t}\":1.5,\"{u}\":\"x\"}}");
    let text = |text: &str, head: u8| [&[head + text.len() as u8][..], text.as_bytes()].concat();
    let half = 1.5f64.to_be_bytes();
    match format {
        Format::Cbor => {
            [&[0xa2][..], &text(t, 0x60), &[0xfb], &half, &text(u, 0x60), &text("x", 0x60)].concat()
        }
        Format::Msgpack => {
            [&[0x82][..], &text(t, 0xa0), &[0xcb], &half, &text(u, 0xa0), &text("x", 0xa0)].concat()
        }
        Format::LineProtocol => format!("m {t}=1.5,{u}=\"x\"").into_bytes(),
        Format::SenmlJson => format!(r#"[{{"n":"{t}","v":1.5}},{{"n":"{u}","vs":"x"}}]"#).into_bytes(),
        Format::Csv => format!("{t},{u}\n1.5,x\n").into_bytes(),
        _ => json.into_bytes(),
    }
}

const FORMATS: [Format; 7] = [
    Format::Json,
    Format::JsonLines,
    Format::Cbor,
    Format::Msgpack,
    Format::LineProtocol,
    Format::SenmlJson,
    Format::Csv,
];

#[test]
fn an_alias_leads_to_its_column_in_every_format() {
    for format in FORMATS {
        let fields = "fields: {t: {type: double, aliases: [temp, t2]}, u: {type: text, aliases: [unit]}}";
        for unknown in ["add", "ignore"] {
            let mut bench = bench(&format!("format: {}\nunknown_fields: {unknown}\n{fields}", format.word()));
            for (t, u) in [("t", "u"), ("temp", "u"), ("t2", "unit")] {
                bench.take(TOPIC, payload(format, t, u)).unwrap_or_else(|e| panic!("{format:?} {t}: {e}"));
            }
            let columns: Vec<String> = bench.columns().into_iter().map(|(name, _)| name).collect();
            assert!(
                !columns.iter().any(|name| ["temp", "t2", "unit"].contains(&name.as_str())),
                "{columns:?}"
            );
            let rows = bench.rows();
            assert!(rows.lines().count() == 3 && rows.lines().all(|row| row.contains("1.5 | x")), "{rows}");
        }
    }
}

#[test]
fn several_names_of_a_column_must_agree() {
    let check = |payload: &str, expect: Result<&str, &str>| {
        let mut bench = bench("fields: {t: {type: double, aliases: [temp, a-b]}, u: text}");
        let outcome = bench.take(TOPIC, payload).map(|_| bench.rows());
        match expect {
            Ok(row) => {
                assert!(outcome.as_ref().is_ok_and(|rows| rows.contains(row)), "{payload}: {outcome:?}")
            }
            Err(why) => assert!(outcome.as_ref().is_err_and(|e| e.contains(why)), "{payload}: {outcome:?}"),
        }
    };
    check(r#"{"t":1,"temp":1.0}"#, Ok("| 1.0 |"));
    check(r#"{"temp":2,"t":2,"a-b":2}"#, Ok("| 2.0 |"));
    check(r#"{"a_b":3}"#, Ok("| 3.0 |"));
    check(r#"{"a.b":4}"#, Ok("| 4.0 |"));
    check(r#"{"t":1,"temp":2}"#, Err("column `t` is given twice, by its own name or an alias"));
    check(r#"{"temp":1,"t":"1"}"#, Err("expected double, found text `1`"));
    check(r#"{"u":"x","u":"x"}"#, Err("field `u` is given twice"));
    check(r#"[{"t":1},{"temp":2}]"#, Ok("| 2.0 |"));
}

#[test]
fn a_shared_field_under_an_alias_gives_way_to_the_events_own() {
    let mut bench = bench("rows: r\nfields: {t: {type: double, aliases: [temp]}}");
    bench.take(TOPIC, r#"{"temp":1,"r":[{},{"t":2},{"temp":3}]}"#).expect("good");
    let rows = bench.rows();
    let values: Vec<&str> = rows.lines().filter_map(|row| row.rsplit(" | ").next()).collect();
    assert_eq!(values, ["1.0", "2.0", "3.0"]);
}

/// The table of `docs/schemas.md`.
#[test]
fn a_value_fits_or_widens_or_makes_a_dead_letter() {
    let values = ["7", "7.5", "99999999999999999999999999", "true", "\"x\"", "null"];
    let check = |column: &str, expect: [&str; 6]| {
        for (value, expect) in values.iter().zip(expect) {
            let declared = format!("fields: {{v: {column}}}");
            let mut bench = bench(if column == "inferred" { "" } else { &declared });
            if column == "inferred" {
                bench.take(TOPIC, r#"{"v":1}"#).expect("an integer");
                bench.rows();
            }
            let outcome = bench.take(TOPIC, format!("{{\"v\":{value}}}"));
            let got =
                outcome.map_or("dead".to_owned(), |_| bench.rows().rsplit(" | ").next().unwrap().to_owned());
            assert_eq!(got, expect, "{value} for {column}");
        }
    };
    check("double", ["7.0", "7.5", "1e26", "dead", "dead", "-"]);
    check("bigint", ["7", "dead", "dead", "dead", "dead", "-"]);
    check("inferred", ["7", "7.5", "dead", "dead", "dead", "-"]);
    check("boolean", ["dead", "dead", "dead", "true", "dead", "-"]);
    check("text", ["dead", "dead", "dead", "dead", "x", "-"]);
    check(
        "timestamp",
        ["1970-01-01T00:00:00.007Z", "1970-01-01T00:00:00.007500Z", "dead", "dead", "dead", "-"],
    );
}

const UPCAST: &str = "fields: {t: double, n: bigint}\nupcast:\n\
    - {when: v = 1, set: {t: (temp_f - 32) / 1.8}, drop: [temp_f, v]}\n\
    - {when: \"arrow_typeof(t) = 'Utf8'\", set: {t: \"CAST(replace(t, ' C', '') AS double)\"}}\n\
    - {when: n < 0, set: {n: 10 / (n + 1)}}\n";

#[test]
fn an_older_event_becomes_one_of_today() {
    let check = |payload: &str, expect: Result<&str, &str>| {
        let mut bench = bench(UPCAST);
        let outcome = bench.take(TOPIC, payload).map(|_| bench.rows());
        match expect {
            Ok(row) => {
                assert!(outcome.as_ref().is_ok_and(|rows| rows.ends_with(row)), "{payload}: {outcome:?}")
            }
            Err(why) => assert!(outcome.as_ref().is_err_and(|e| e.contains(why)), "{payload}: {outcome:?}"),
        }
    };
    // Columns: n, t, and what was found.
    check(r#"{"v":1,"temp_f":50,"n":3}"#, Ok("| a | 3 | 10.0"));
    check(r#"{"v":1,"temp_f":50,"t":7}"#, Ok("| a | - | 10.0"));
    check(r#"{"v":2,"t":20}"#, Ok("| a | - | 20.0 | 2"));
    check(r#"{"t":"21.5 C"}"#, Ok("| a | - | 21.5"));
    check(r#"{"t":"warm"}"#, Err("upcast, step 2, `t`"));
    check(r#"{"n":-1}"#, Err("upcast, step 3, `n`"));
    check(r#"{"n":-6}"#, Ok("| a | -2 | -"));
    check(r#"{"n":"x"}"#, Err("upcast, step 3, `when`"));
    check(r#"{"n":1,"n":2}"#, Err("field `n` is given twice"));
    check(r#"[{"v":1,"temp_f":50},{"t":1.5}]"#, Ok("| a | - | 1.5"));
}

#[test]
fn an_upcast_sees_every_format() {
    for format in FORMATS {
        let more = format!(
            "format: {}\nfields: {{x: double}}\nunknown_fields: ignore\nupcast: [{{when: u = 'x', set: {{x: t * 2}}, drop: [t, u]}}]",
            format.word()
        );
        let mut bench = bench(&more);
        bench.take(TOPIC, payload(format, "t", "u")).unwrap_or_else(|e| panic!("{format:?}: {e}"));
        let rows = bench.rows();
        assert!(rows.ends_with("| a | 3.0"), "{format:?}: {rows}");
    }
}

/// Pseudo-random messages, decoded twice from the same columns on: the same rows, columns and refusals.
#[test]
fn what_is_decoded_again_is_the_same_again() {
    let fields =
        format!("{}unknown_fields: add\n", UPCAST.replace("n: bigint", "n: {type: bigint, aliases: [m]}"));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let names = ["t", "n", "m", "v", "temp_f", "w", "x"];
    let values = ["1", "-6", "1.5", "true", "\"9 C\"", "\"x\"", "null", "-1", "50"];
    let payloads: Vec<String> = (0..2_000)
        .map(|_| {
            let fields = (0..1 + random(4))
                .map(|_| format!("\"{}\":{}", names[random(names.len())], values[random(values.len())]));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        })
        .collect();
    let decode = || {
        let mut bench = bench(&fields);
        let outcomes: Vec<_> = payloads.iter().map(|payload| bench.take(TOPIC, payload)).collect();
        (outcomes, bench.rows(), bench.columns())
    };
    let first = decode();
    let good = first.0.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(good > 300 && good < 1_900, "{good} of 2000 are good: the test tests little");
    assert_eq!(first, decode());
}
