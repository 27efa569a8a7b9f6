use super::*;

fn def(when: &str, set: &[(&str, &str)], drop: &[&str]) -> UpcastDef {
    UpcastDef {
        when: when.into(),
        set: set.iter().map(|(field, text)| (field.to_string(), text.to_string())).collect(),
        drop: drop.iter().map(ToString::to_string).collect(),
    }
}

/// What an event of these fields becomes.
fn apply(upcast: &mut Upcast, event: &[(&str, Value)]) -> Result<Vec<(String, Option<Value>)>, String> {
    let value = |name: &String| event.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let values: Vec<Option<Value>> = upcast.inputs().iter().map(value).collect();
    let done = upcast.apply(&values)?;
    let set = done.map(|done| done.set).unwrap_or_default();
    Ok(set.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
}

#[test]
fn the_first_step_that_is_meant_changes_the_event() {
    let mut upcast = Upcast::new(&[
        def("v = 1", &[("t", "(f - 32) / 1.8")], &["f"]),
        def("v <= 2", &[("t", "f * 10"), ("s", "'old'")], &[]),
    ])
    .expect("good");
    assert_eq!(upcast.inputs(), ["f", "s", "t", "v"]);
    let v = |v| ("v", Value::Integer(v));
    let one = apply(&mut upcast, &[v(1), ("f", Value::Integer(50))]).expect("it works");
    assert_eq!(one, [("t".to_owned(), Some(Value::Float(10.0)))]);
    let two = apply(&mut upcast, &[v(2), ("f", Value::Float(0.5))]).expect("it works");
    assert_eq!(two[1], ("t".to_owned(), Some(Value::Float(5.0))));
    assert_eq!(apply(&mut upcast, &[v(3)]).expect("none is meant"), []);
    assert_eq!(apply(&mut upcast, &[]).expect("NULL is not true"), []);
    let absent = apply(&mut upcast, &[v(1)]).expect("nothing of nothing");
    assert_eq!(absent, [("t".to_owned(), None)]);
}

#[test]
fn a_text_for_a_number_is_read_by_its_own_type() {
    let set = [("t", "CAST(replace(t, ' C', '') AS double)")];
    let mut upcast = Upcast::new(&[def("arrow_typeof(t) = 'Utf8'", &set, &[])]).expect("good");
    let text = |text: &str| [("t", Value::Text(text.into()))];
    let good = apply(&mut upcast, &text("21.5 C")).expect("a number");
    assert_eq!(good, [("t".to_owned(), Some(Value::Float(21.5)))]);
    let bad = apply(&mut upcast, &text("warm")).expect_err("no number");
    assert!(bad.contains("upcast, step 1, `t`") && bad.contains("warm"), "{bad}");
    assert_eq!(apply(&mut upcast, &[("t", Value::Float(1.0))]).expect("not meant"), []);
}

#[test]
fn what_depends_on_more_than_the_event_is_refused() {
    let check = |text: &str, words: &str| {
        let error = Upcast::new(&[def("true", &[("t", text)], &[])]).expect_err(text);
        assert!(error.contains("step 1, `t`") && error.contains(words), "{text}: {error}");
    };
    check("random()", "another value the next time");
    check("now()", "another value the next time");
    check("avg(x)", "nothing to aggregate");
    check("(SELECT 1)", "subqueries");
    check("a.b", "with `_`");
    check("a +", "");
    check("1; 2", "");
    check("no_such_function(a)", "no_such_function");
    assert!(Upcast::new(&[def("true", &[], &[])]).is_err());
}

#[test]
fn events_of_many_shapes_do_not_pile_up_plans() {
    let names: Vec<String> = (0..8).map(|i| format!("f{i}")).collect();
    let sum = names.join(" IS NULL OR ");
    let mut upcast = Upcast::new(&[def(&format!("{sum} IS NULL"), &[("t", "1")], &[])]).expect("good");
    for shape in 0..256 {
        let event: Vec<(&str, Value)> = names
            .iter()
            .enumerate()
            .filter(|(i, _)| shape >> i & 1 == 1)
            .map(|(_, name)| (name.as_str(), Value::Integer(1)))
            .collect();
        apply(&mut upcast, &event).expect("it works");
        assert!(upcast.plans.len() <= MAX_SHAPES);
    }
}
