//! Definitions that come, change and go; errors; limits; what a transition says.

use arrow::datatypes::TimeUnit;
use iot_schemas::catalog::Severity;
use serde_json::json;

use super::*;

const HOT: Option<f64> = Some(90.0);
const COLD: Option<f64> = Some(10.0);

fn error_of(lines: &str) -> String {
    RuleSet::default().put(rule(lines), stream(), &at(0)).expect_err("a bad rule").to_string()
}

#[test]
fn a_transition_says_what_happened() {
    let lines = "when: temp > 80\nseverity: critical\nlabels: {team: plant}\n\
                 annotations: {summary: \"{device_id} of {team} at {temp} C on {_topic}, {unknown}\"}";
    let found = set(lines).evaluate("s", &rows(&[("a", 1, Some(81.234_567_8))]), &at(9));
    let [transition] = found.as_slice() else { panic!("one transition, not {found:?}") };
    assert_eq!(transition.labels, [("device_id", "a"), ("team", "plant")].map(own).into());
    assert_eq!(
        transition.annotations,
        [("summary", "a of plant at 81.2346 C on t, {unknown}")].map(own).into()
    );
    let values = json!({"event_time": "1970-01-01T00:01:00Z", "device_id": "a", "temp": 81.2345678});
    assert_eq!(serde_json::Value::Object(transition.values.clone()), values);
    assert_eq!((transition.severity, transition.recorded_at, transition.seq), (Severity::Critical, 7, 9));
    assert_eq!((transition.started_at, transition.at, transition.id), (MINUTE, MINUTE, 0));
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn transitions_come_by_row_then_by_rule_and_are_numbered_within_the_group() {
    let mut set = RuleSet::default();
    for name in ["b", "a"] {
        set.put(named(name, "when: temp > 80"), stream(), &at(0)).expect("a good rule");
    }
    let batch = rows(&[("x", 1, HOT), ("y", 1, HOT)]);
    let order = |found: &[Transition]| -> Vec<String> {
        found.iter().map(|t| format!("{} {} {}", t.labels["device_id"], t.rule, t.ordinal)).collect()
    };
    assert_eq!(order(&set.evaluate("s", &batch, &at(1))), ["x a 0", "x b 1", "y a 2", "y b 3"]);
    let cold = rows(&[("x", 2, COLD)]);
    assert_eq!(order(&set.evaluate("s", &cold, &at(1))), ["x a 4", "x b 5"], "the same group goes on");
    let cold = rows(&[("y", 2, COLD)]);
    assert_eq!(order(&set.evaluate("s", &cold, &at(2))), ["y a 0", "y b 1"], "the next begins anew");
    assert!(set.evaluate("other", &batch, &at(3)).is_empty());
}

#[test]
fn a_bad_condition_says_where_and_what_to_try() {
    let cases: [(&str, &[&str]); 9] = [
        ("when: tmp > 80", &["rule `r`", "when: tmp > 80", "`s` has no column `tmp`", "temp", "fields"]),
        ("when: temp > 80\nclear_when: hum < 1", &["clear_when: hum < 1", "no column `hum`"]),
        ("when: temp + 1", &["true or false", "Float64"]),
        ("when: temp >", &["when: temp >"]),
        ("when: temp > 80 garbage here", &["when:"]),
        ("when: now() > event_time", &["now()", "replayed"]),
        ("when: max(temp) > 3", &["view"]),
        ("when: nosuch(temp)", &["nosuch"]),
        ("when: temp > 80\nlabels: {device_id: x}", &["label `device_id`"]),
    ];
    for (lines, words) in cases {
        let error = error_of(lines);
        for word in words {
            assert!(error.contains(word), "`{lines}` gives `{error}`, without `{word}`");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_column_with_capitals_is_found_once_it_is_quoted() {
    let target = Target { schema: raw_schema([Field::new("Temp", DataType::Int64, true)]), ..stream() };
    let put =
        |when: &str| RuleSet::default().put(rule(when), target.clone(), &at(0)).map_err(|e| e.to_string());
    let error = put("when: Temp > 1").expect_err("not quoted");
    assert!(error.contains("write \"Temp\" in double quotes"), "{error}");
    put("when: '\"Temp\" > 1'").expect("quoted");
}

#[test]
fn a_row_on_which_the_condition_fails_harms_no_other() {
    let mut set = set("when: 100 / arrow_cast(temp, 'Int64') > 9");
    let batch = rows(&[("a", 1, Some(10.0)), ("b", 1, Some(0.0)), ("c", 1, Some(50.0)), ("d", 1, Some(1.0))]);
    assert_eq!(told(&set.evaluate("s", &batch, &at(1))), ["a 1 firing", "d 1 firing"]);
    let stats = &set.stats()["r"];
    assert_eq!((stats.failed, stats.rows), (1, 4));
    assert!(stats.last_error.as_ref().is_some_and(|e| e.contains("zero")), "{stats:?}");
}

#[test]
fn a_changed_or_removed_rule_ends_its_alerts() {
    let mut set = set("when: temp > 80");
    let fired = set.evaluate("s", &rows(&[("b", 1, HOT), ("a", 1, HOT)]), &at(1));
    assert!(set.put(rule("when: temp > 80"), stream(), &at(1)).expect("the same").is_empty());
    let ended = set.put(rule("when: temp > 85\nfor: 5m"), stream(), &at(1)).expect("changed");
    assert_eq!(told(&ended), ["a 1 resolved", "b 1 resolved"]);
    assert_eq!(ended.iter().map(|t| t.ordinal).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(ended[1].alert_id, fired[0].alert_id);
    set.evaluate("s", &rows(&[("a", 2, HOT)]), &at(2));
    assert_eq!(told(&set.remove("r", &at(2))), ["a 2 inactive"]);
    assert_eq!(set.names().count(), 0);
    assert!(set.remove("r", &at(2)).is_empty());
}

#[test]
fn a_rule_that_is_gone_when_its_checkpoint_is_restored_ends_its_alerts() {
    let mut old = set("when: temp > 80");
    old.evaluate("s", &rows(&[("a", 1, HOT)]), &at(1));
    let ended = RuleSet::default().restore(old.checkpoint(), &at(1)).expect("its own version");
    assert_eq!(told(&ended), ["a 1 resolved"]);
    assert_eq!(ended[0].ordinal, 1);
}

#[test]
fn a_new_schema_keeps_instances_and_compiles_anew() {
    let mut set = set("when: temp > 80\nfor: 2m");
    set.evaluate("s", &rows(&[("a", 1, HOT)]), &at(1));
    let fields = [Field::new("temp", DataType::Float64, true), Field::new("hum", DataType::Float64, true)];
    let wider = Target { schema: raw_schema(fields), ..stream() };
    let outcome = set.retarget(wider.clone(), &at(1));
    assert!(outcome.ended.is_empty() && outcome.unfit.is_empty());
    // A batch from before the column was there.
    assert_eq!(told(&set.evaluate("s", &rows(&[("a", 3, HOT)]), &at(2))), ["a 3 firing"]);
    set.put(named("humid", "when: hum > 1"), wider.clone(), &at(2)).expect("the column is there now");

    let without = Target { schema: raw_schema([Field::new("hum", DataType::Float64, true)]), ..stream() };
    let outcome = set.retarget(without, &at(2));
    assert_eq!(outcome.unfit.len(), 1, "one rule needs the column that is gone");
    assert_eq!(told(&set.evaluate("s", &rows(&[("a", 4, COLD)]), &at(3))), ["a 4 resolved"], "it goes on");

    set.evaluate("s", &rows(&[("a", 5, HOT)]), &at(4));
    let keyless = Target { key_columns: Vec::new(), ..wider };
    assert_eq!(told(&set.retarget(keyless, &at(4)).ended), ["a 5 inactive"], "other keys, other instances");
}

#[test]
fn the_rows_of_a_view_have_several_keys_of_several_types() {
    let mut set = RuleSet::default();
    let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let schema = arrow::datatypes::Schema::new(vec![
        Field::new("line", DataType::Int64, true),
        Field::new("device_id", DataType::Utf8, true),
        Field::new("window_start", micros, true),
        Field::new("n", DataType::Int64, false),
    ]);
    let target = Target {
        name: "s".into(),
        schema: Arc::new(schema.clone()),
        time_column: Some("window_start".into()),
        key_columns: vec!["line".into(), "device_id".into()],
    };
    set.put(rule("when: n > 5"), target, &at(0)).expect("a good rule");
    let times = TimestampMicrosecondArray::from(vec![MINUTE; 3]).with_timezone("UTC");
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(arrow::array::Int64Array::from(vec![Some(1), None, Some(2)])),
        Arc::new(StringArray::from(vec![Some("a"), Some("a"), None])),
        Arc::new(times),
        Arc::new(arrow::array::Int64Array::from(vec![6, 7, 8])),
    ];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).expect("a batch");
    let found = set.evaluate("s", &batch, &at(1));
    let labels: Vec<_> = found.iter().map(|t| t.labels.clone()).collect();
    let expect = [vec![("device_id", "a"), ("line", "1")], vec![("device_id", "a")], vec![("line", "2")]];
    assert_eq!(labels, expect.map(|pairs| pairs.into_iter().map(own).collect()));
}

#[test]
fn rows_without_a_time_of_their_own_have_the_groups() {
    let mut set = RuleSet::default();
    let target = Target { time_column: None, ..stream() };
    set.put(rule("when: temp > 80\nfor: 2m"), target, &at(0)).expect("a good rule");
    let mut sample = |minute: i64| {
        let position = GroupPosition { now: minute * MINUTE, ..at(minute as u64) };
        told(&set.evaluate("s", &rows(&[("a", 0, HOT)]), &position))
    };
    assert_eq!(sample(10), ["a 10 pending"]);
    assert_eq!(sample(12), ["a 12 firing"]);
}

#[test]
fn what_goes_beyond_the_limit_is_shed_and_counted() {
    let mut set = RuleSet::new(2);
    set.put(rule("when: temp > 80"), stream(), &at(0)).expect("a good rule");
    let hot = rows(&[("a", 1, HOT), ("b", 1, HOT), ("c", 1, HOT)]);
    assert_eq!(told(&set.evaluate("s", &hot, &at(1))), ["a 1 firing", "b 1 firing"]);
    let stats = &set.stats()["r"];
    assert_eq!((stats.shed, stats.firing, stats.pending), (1, 2, 0));
    let found = set.evaluate("s", &rows(&[("a", 2, COLD), ("c", 2, HOT)]), &at(2));
    assert_eq!(told(&found), ["a 2 resolved", "c 2 firing"], "there is room again");
}

#[test]
fn rules_and_log_agree_again_after_a_change_around_a_crash() {
    let mut set = set("when: temp > 80");
    let fired = set.evaluate("s", &rows(&[("a", 1, HOT), ("b", 1, HOT)]), &at(1));
    assert!(set.reconcile(&fired, &at(1)).is_empty(), "an ordinary replay leaves nothing to do");
    let orphan = Transition { alert_id: "gone".into(), rule: "old".into(), ..fired[0].clone() };
    let missing = set.reconcile(&[fired[0].clone(), orphan], &at(1));
    let states: Vec<_> = missing.iter().map(|t| (t.rule.as_str(), tell(t), t.previous)).collect();
    let expect =
        [("r", "b 1 firing".to_owned(), None), ("old", "a 1 resolved".to_owned(), Some(AlertState::Firing))];
    assert_eq!(states, expect);
}

#[test]
fn historical_rows_are_passed_over() {
    let with = |historical: Vec<Option<bool>>| {
        let samples = [("a", 1, HOT), ("b", 2, HOT), ("c", 3, COLD)];
        let batch = rows(&samples);
        let mut fields = batch.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(layout::IS_HISTORICAL, DataType::Boolean, true)));
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(arrow::array::BooleanArray::from(historical)));
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        RecordBatch::try_new(schema, columns).expect("columns of one length")
    };
    let check = |historical: [Option<bool>; 3], expect: &[&str]| {
        let mut set = set("when: temp > 80");
        let found = told(&set.evaluate("s", &with(historical.to_vec()), &at(1)));
        assert_eq!(found, expect, "{historical:?}");
    };
    check([Some(false), None, None], &["a 1 firing", "b 2 firing"]);
    check([Some(true), Some(false), Some(true)], &["b 2 firing"]);
    check([Some(true); 3], &[]);
    // Neither do they end an alert.
    let mut set = set("when: temp > 80");
    set.evaluate("s", &rows(&[("c", 1, HOT)]), &at(1));
    assert!(set.evaluate("s", &with(vec![Some(true); 3]), &at(2)).is_empty());
}
