use arrow::datatypes::{Field, Schema, SchemaRef};

use super::*;
use crate::catalog::{Definition, FieldType, StreamDef, parse};
use crate::layout::raw_schema;

fn def(more: &str) -> StreamDef {
    let text = format!("kind: stream\nname: s\ntopics: ['x/{{site}}']\n{more}");
    let Definition::Stream(def) = parse(&text, "test").expect(more).remove(0).def else { panic!("a stream") };
    def.as_ref().clone()
}

fn schema(columns: &[(&str, FieldType)]) -> SchemaRef {
    raw_schema(columns.iter().map(|(name, t)| Field::new(*name, t.data_type(), true)))
}

fn stamp(why: Why, seq: u64) -> Stamp {
    Stamp { why, at: 0, node: "n".into(), seq }
}

/// A stream with a declared, a found, an aliased, a renamed and a kept column.
fn history() -> History {
    let mut history = History::default();
    let none = Schema::empty();
    history.observe(&def("fields: {old: bigint}"), &none, stamp(Why::Applied, 1));
    let fields =
        "fields: {d: {type: double, unit: Cel, aliases: [e]}, new: {type: double, aliases: [old]}, t: text}";
    history.observe(&def(fields), &none, stamp(Why::Applied, 5));
    let found = [("i", FieldType::Bigint), ("b", FieldType::Boolean), ("f", FieldType::Double)];
    history.observe(&def(fields), &schema(&found), stamp(Why::Inferred, 9));
    history
}

/// What [`history`] declares, and this.
fn fields(d: &str, more: &str) -> String {
    format!("fields: {{d: {d}, new: {{type: double, aliases: [old]}}, t: text{more}}}")
}

const D: &str = "{type: double, unit: Cel, aliases: [e]}";

fn plan(more: &str) -> Vec<(RuleId, Option<String>)> {
    let changes = history().plan(&def(more)).expect("there is room");
    changes.into_iter().map(|change| (change.rule, change.column)).collect()
}

#[test]
fn every_rule_of_the_table_judges_a_change() {
    let mut judged = Vec::new();
    let mut check = |more: String, column: &str, rule: RuleId, compatible: bool| {
        assert_eq!(plan(&more), [(rule, (!column.is_empty()).then(|| column.to_owned()))], "{more}");
        assert_eq!(rule.rule().is_compatible(), compatible, "{rule:?}");
        judged.push(rule);
    };
    let with = |more: &str| fields(D, more);
    check(with(", n: text"), "n", RuleId::AddField, true);
    check(with(", b: boolean"), "b", RuleId::Declare, true);
    check(with("").replace("t: text", "t: {type: text, aliases: [u]}"), "t", RuleId::AddAlias, true);
    check(with("").replace("t: text", "t: {type: text, unit: '%'}"), "t", RuleId::StateUnit, true);
    check(with("").replace("t: text", "t: {type: text, deprecated: no}"), "t", RuleId::Deprecate, true);
    check(with("").replace(", t: text", ""), "t", RuleId::Remove, true);
    check(with("").replace("t: text", "t: bigint"), "t", RuleId::ChangeType, false);
    check(with(", I: bigint"), "I", RuleId::OnlyCase, false);
    check(with(", r: {type: double, aliases: [i]}"), "r", RuleId::Rename, true);
    check(with(", r: {type: text, aliases: [i]}"), "r", RuleId::RenameType, false);
    check(fields("{type: double, unit: Cel}", ""), "d", RuleId::RemoveAlias, true);
    check(fields("{type: double, unit: Cel, aliases: [e, f]}", ""), "d", RuleId::Redirect, true);
    check(fields("{type: double, unit: K, aliases: [e]}", ""), "d", RuleId::ChangeUnit, false);
    check(fields("{type: double, aliases: [e]}", ""), "d", RuleId::ChangeUnit, false);
    check(with("").replace(", aliases: [old]", ""), "new", RuleId::UndoRename, false);
    check(with("") + "\nunknown_fields: ignore", "", RuleId::UnknownFields, true);
    assert_eq!(plan(&with("")), [], "the same again changes nothing");
    let both = plan(&with(", i: double"));
    assert_eq!(both, [(RuleId::Widen, Some("i".into())), (RuleId::Declare, Some("i".into()))]);
    judged.push(RuleId::Widen);
    let both = plan(&with(", f: bigint"));
    assert_eq!(both, [(RuleId::Narrow, Some("f".into())), (RuleId::Declare, Some("f".into()))]);
    judged.push(RuleId::Narrow);
    let gone = plan(&with("").replace("new: {type: double, aliases: [old]}, ", ""));
    assert!(gone.contains(&(RuleId::UndoRename, Some("new".into()))), "{gone:?}");
    // The topic has no level `site` any more, and a property is called so.
    let mut moved = def(&(with("") + "\nproperties: [plant]"));
    moved.topics = vec!["x/+".parse().expect("a pattern")];
    moved.properties = vec!["site".into()];
    let rules: Vec<RuleId> = history().plan(&moved).expect("room").iter().map(|change| change.rule).collect();
    assert_eq!(rules, [RuleId::ChangeSource]);
    judged.push(RuleId::ChangeSource);
    let mut deprecated = history();
    let noted = def(&with("").replace("t: text", "t: {type: text, deprecated: no}"));
    deprecated.observe(&noted, &Schema::empty(), stamp(Why::Applied, 10));
    let back = deprecated.plan(&def(&with(""))).expect("room");
    assert_eq!(back.iter().map(|change| change.rule).collect::<Vec<_>>(), [RuleId::Undeprecate]);
    judged.push(RuleId::Undeprecate);
    // Only the catalog knows: tests/it/schemas.rs.
    judged.extend([RuleId::InUse, RuleId::StopFilling]);
    for rule in RULES {
        assert!(judged.contains(&rule.id), "{:?} has no test", rule.id);
    }
}

#[test]
fn neither_a_rename_nor_a_redirect_hides_a_change_of_unit() {
    let mut history = history();
    let check = |history: &History, fields: &str, column: &str, expect: &[(RuleId, &str)]| {
        let changes = history.plan(&def(fields)).expect("there is room");
        let of_column = changes.iter().filter(|change| change.column.as_deref() == Some(column));
        let found: Vec<_> = of_column.map(|change| (change.rule, change.detail.as_str())).collect();
        assert_eq!(found, expect, "{fields}");
    };
    let renamed = |more: &str| {
        let kelvin = format!("kelvin: {{type: double, aliases: [d]{more}}}");
        format!("fields: {{{kelvin}, new: {{type: double, aliases: [old]}}, t: text}}")
    };
    let refused = |detail| [(RuleId::ChangeUnit, detail)];
    check(&history, &renamed(", unit: K"), "kelvin", &refused("of `d` from `Cel` to `K`"));
    check(&history, &renamed(""), "kelvin", &refused("of `d` from `Cel` to none"));
    check(&history, &renamed(", unit: Cel"), "kelvin", &[(RuleId::Rename, "double, from `d`")]);
    let text = renamed(", unit: K").replace("kelvin: {type: double", "kelvin: {type: text");
    let both =
        [(RuleId::RenameType, "text, from `d`, which is double"), refused("of `d` from `Cel` to `K`")[0]];
    check(&history, &text, "kelvin", &both);
    history.observe(
        &def(&fields(D, ", k: {type: double, unit: K}")),
        &Schema::empty(),
        stamp(Why::Applied, 10),
    );
    let redirected =
        fields(D, ", k: {type: double, unit: K, aliases: [d]}").replace(&format!("d: {D}, "), "");
    check(&history, &redirected, "k", &refused("of `d` from `Cel` to `K`"));
    // What states no unit may be anything.
    let found = fields(D, ", k: {type: double, unit: K, aliases: [f]}");
    check(&history, &found, "k", &[(RuleId::Redirect, "`f`")]);
}

#[test]
fn a_column_can_be_renamed_again_by_both_of_its_names() {
    let mut history = history();
    let again = |aliases: &str| {
        let newest = format!("newest: {{type: double, aliases: [{aliases}]}}");
        def(&format!("fields: {{d: {D}, {newest}, t: text}}"))
    };
    let rules = |history: &History, def: &StreamDef| -> Vec<RuleId> {
        history.plan(def).expect("room").iter().map(|change| change.rule).collect()
    };
    assert_eq!(rules(&history, &again("new, old")), [RuleId::Rename, RuleId::Rename]);
    assert!(rules(&history, &again("new")).contains(&RuleId::UndoRename));
    history.observe(&again("new, old"), &Schema::empty(), stamp(Why::Applied, 10));
    let pairs = [("new", "old"), ("newest", "new"), ("newest", "old")];
    assert_eq!(history.renames()[..], pairs.map(|(new, old)| (new.to_owned(), old.to_owned())));
    assert_eq!(rules(&history, &again("new, old")), [], "the same again changes nothing");
    let undone = rules(&history, &def(&fields(D, "")));
    assert!(undone.contains(&RuleId::UndoRename), "{undone:?}");
}

#[test]
fn new_columns_must_differ_by_more_than_case_from_each_other_too() {
    let changes = History::default().plan(&def("fields: {temp: double, Temp: double}")).expect("room");
    let rules: Vec<_> = changes.iter().map(|change| (change.rule, change.column.as_deref())).collect();
    assert_eq!(
        rules,
        [
            (RuleId::AddField, Some("site")),
            (RuleId::AddField, Some("Temp")),
            (RuleId::OnlyCase, Some("temp"))
        ]
    );
}

#[test]
fn a_column_falls_silent_when_nothing_fills_it_any_more() {
    let check = |more: String, expect: &[&str]| assert_eq!(history().silenced(&def(&more)), expect, "{more}");
    let ignore = "\nunknown_fields: ignore";
    check(fields(D, ""), &[]);
    check(fields(D, "") + ignore, &["i", "b", "f"]);
    check(fields(D, ", i: bigint") + ignore, &["b", "f"]);
    check(fields(D, "").replace(", t: text", ""), &[]);
    check(fields(D, ", i: bigint, b: boolean, f: double").replace(", t: text", "") + ignore, &["t"]);
    check(fields(D, ", r: {type: double, aliases: [i]}"), &["i"]);
}

#[test]
fn a_version_says_what_it_changed_and_is_in_force_from_its_position_on() {
    let history = history();
    let numbers: Vec<_> = history.versions().iter().map(|v| (v.number, v.why, v.seq)).collect();
    assert_eq!(numbers, [(1, Why::Applied, 1), (2, Why::Applied, 5), (3, Why::Inferred, 9)]);
    assert_eq!([0, 1, 4, 5, 8, 9, 99].map(|seq| history.at(seq)), [1, 1, 1, 2, 2, 3, 3].map(Some));
    let names = |number| {
        history.version(number).expect("it is there").columns.into_iter().map(|c| c.name).collect::<Vec<_>>()
    };
    assert_eq!(names(1), ["site", "old"]);
    assert_eq!(names(3), ["site", "old", "d", "new", "t", "i", "b", "f"]);
    let changes: Vec<_> = history
        .version(2)
        .expect("it is there")
        .changes
        .into_iter()
        .map(|change| (change.rule, change.detail))
        .collect();
    assert_eq!(
        changes,
        [
            (RuleId::AddField, "double".to_owned()),
            (RuleId::Rename, "double, from `old`".to_owned()),
            (RuleId::AddField, "text".to_owned())
        ]
    );
    assert_eq!(history.renames()[..], [("new".to_owned(), "old".to_owned())]);
    assert_eq!(History::default().at(5), None);
}

#[test]
fn what_was_seen_before_makes_no_version() {
    let mut history = history();
    let def = def(&fields(D, ""));
    let narrower = [("i", FieldType::Bigint)];
    assert!(!history.observe(&def, &schema(&narrower), stamp(Why::Inferred, 20)));
    assert!(!history.observe(&def, &Schema::empty(), stamp(Why::Applied, 20)), "applied again");
    let wider = [("i", FieldType::Double)];
    assert!(history.observe(&def, &schema(&wider), stamp(Why::Inferred, 21)));
    assert!(!history.observe(&def, &schema(&narrower), stamp(Why::Inferred, 22)), "decoded again");
    assert_eq!(history.version(4).expect("it is there").changes[0].rule, RuleId::Widen);
    assert!(history.version(5).is_none() && history.version(0).is_none());
}

#[test]
fn a_history_comes_back_from_its_versions() {
    let history = history();
    let json = serde_json::to_string(&history.versions().iter().map(|v| &**v).collect::<Vec<_>>());
    let versions: Vec<Version> = serde_json::from_str(&json.expect("JSON")).expect("versions");
    let again = History::new(versions.clone()).expect("they are in order");
    assert_eq!((again.versions(), again.latest()), (history.versions(), history.latest()));
    assert_eq!(again.renames(), history.renames());
    let mut gap = versions;
    gap.remove(0);
    assert!(History::new(gap).expect_err("the first is missing").contains("version 2"));
}

#[test]
fn a_removed_field_keeps_its_unit_so_that_it_does_not_come_back_with_another() {
    let mut history = history();
    let none = Schema::empty();
    let without = def(&fields(D, "").replace(&format!("d: {D}, "), ""));
    assert!(history.observe(&without, &none, stamp(Why::Applied, 30)));
    assert_eq!(history.latest()[2].source, Source::Inferred);
    let back = def(&fields("{type: double, unit: K}", ""));
    let rules: Vec<RuleId> = history.plan(&back).expect("room").iter().map(|change| change.rule).collect();
    assert!(rules.contains(&RuleId::ChangeUnit), "{rules:?}");
}

#[test]
fn a_stream_cannot_have_versions_without_end() {
    let mut history = History::default();
    let text = |n: usize| def(&format!("fields: {{a: {{type: text, deprecated: 'n{n}'}}}}"));
    for n in 0..MAX_VERSIONS + 10 {
        history.observe(&text(n), &Schema::empty(), stamp(Why::Applied, n as u64));
    }
    assert_eq!(history.versions().len(), MAX_VERSIONS);
    let error = history.plan(&text(0)).expect_err("no room").to_string();
    assert!(error.contains("begin a stream of another name"), "{error}");
}
