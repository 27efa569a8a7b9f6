//! The rules of compatible change, as one table.
//!
//! `apply` refuses what is incompatible, `iotctl schema check` prints it, the manual shows it: all from here.

/// What can change about a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleId {
    /// A field that was not there.
    AddField,
    /// A column that was found, or kept, is declared.
    Declare,
    /// An integer column becomes a double column.
    Widen,
    /// A double column would become an integer column.
    Narrow,
    /// Any other type.
    ChangeType,
    /// A new name for a column that is there: the old name is an alias of it.
    Rename,
    /// A new name of another type than the old one.
    RenameType,
    /// An alias that is the name of no column.
    AddAlias,
    /// An alias that is the name of another column.
    Redirect,
    /// An alias is taken away.
    RemoveAlias,
    /// The alias that made a rename is taken away.
    UndoRename,
    /// A unit where there was none.
    StateUnit,
    /// Another unit, or none any more; also by a new name, or a redirect.
    ChangeUnit,
    /// A note that a field should not be used.
    Deprecate,
    /// No such note any more.
    Undeprecate,
    /// A declared field, level or property is no longer in the definition.
    Remove,
    /// A column gets its values from elsewhere: a topic level instead of a field, ...
    ChangeSource,
    /// Another `unknown_fields`.
    UnknownFields,
    /// A name that differs from a column's only by case.
    OnlyCase,
    /// A view or a rule reads the column whose name becomes an alias.
    InUse,
    /// A view or a rule reads a column that nothing would fill any more.
    StopFilling,
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// What it is about.
    pub id: RuleId,
    /// Its name in lists.
    pub name: &'static str,
    /// What becomes of the data; for what is refused, why.
    pub what: &'static str,
    /// What to do instead; `None` if the change is compatible.
    pub instead: Option<&'static str>,
}

impl Rule {
    /// Whether `apply` does it.
    pub fn is_compatible(&self) -> bool {
        self.instead.is_none()
    }
}

const fn allowed(id: RuleId, name: &'static str, what: &'static str) -> Rule {
    Rule { id, name, what, instead: None }
}

const fn refused(id: RuleId, name: &'static str, why: &'static str, instead: &'static str) -> Rule {
    Rule { id, name, what: why, instead: Some(instead) }
}

/// All rules.
pub const RULES: &[Rule] = &[
    allowed(RuleId::AddField, "add field", "older events have null in the new column"),
    allowed(RuleId::Declare, "declare column", "the column keeps its values; its type is fixed from now on"),
    allowed(
        RuleId::Widen,
        "widen bigint to double",
        "stored integers are read as doubles; those beyond 2^53 lose their last digits",
    ),
    allowed(
        RuleId::Rename,
        "rename",
        "the old column stays; the new one is read as the old one where it has no value",
    ),
    allowed(RuleId::AddAlias, "add alias", "from now on payload fields of that name fill the column"),
    allowed(
        RuleId::Redirect,
        "redirect column",
        "from now on its field fills the other column; what it holds stays, and is not merged",
    ),
    allowed(
        RuleId::RemoveAlias,
        "remove alias",
        "from now on a payload field of that name is treated as `unknown_fields` says",
    ),
    allowed(RuleId::StateUnit, "state unit", "nothing is converted"),
    allowed(RuleId::Deprecate, "deprecate", "nothing but the note changes"),
    allowed(RuleId::Undeprecate, "take deprecation back", "nothing but the note changes"),
    allowed(
        RuleId::Remove,
        "remove from definition",
        "the column and its values stay in the table; `unknown_fields` decides about new events",
    ),
    allowed(
        RuleId::ChangeSource,
        "change source",
        "the column keeps its values; new ones come from elsewhere",
    ),
    allowed(RuleId::UnknownFields, "change unknown_fields", "it decides about new events only"),
    refused(
        RuleId::Narrow,
        "narrow double to bigint",
        "stored values may have fractions",
        "leave it double, or declare a field of another name",
    ),
    refused(
        RuleId::ChangeType,
        "change type",
        "stored values cannot be read as the other type",
        "declare a field of another name and type",
    ),
    refused(
        RuleId::RenameType,
        "rename to another type",
        "the old column's values cannot be read as the new column's type",
        "give the new name the old type, or leave the old name out of `aliases`",
    ),
    refused(
        RuleId::UndoRename,
        "undo rename",
        "the old column answers for the new one's older events, and new values in it would do so too",
        "leave the old name among the aliases; a field may be deprecated instead of removed",
    ),
    refused(
        RuleId::ChangeUnit,
        "change unit",
        "stored values count the old unit",
        "declare a field of another name with the new unit, and leave the old name out of its aliases",
    ),
    refused(
        RuleId::OnlyCase,
        "differ only by case",
        "table formats do not tell the two columns apart",
        "use the name that is there, and this one as its alias",
    ),
    refused(
        RuleId::InUse,
        "rename or redirect a column in use",
        "what reads the old column would get no new values, and not say so",
        "let it read the new column, in the same apply",
    ),
    refused(
        RuleId::StopFilling,
        "stop filling a column in use",
        "what reads the column would get no new values, and not say so",
        "declare the field, or let what reads it do without it, in the same apply",
    ),
];

impl RuleId {
    /// The rule.
    pub fn rule(self) -> &'static Rule {
        RULES.iter().find(|rule| rule.id == self).expect("the table has every rule: a test goes through them")
    }
}

/// The table as the manual has it.
pub fn markdown() -> String {
    let mut text =
        String::from("| change | | what becomes of the data, or what to do instead |\n|---|---|---|\n");
    for rule in RULES {
        let verdict = if rule.is_compatible() { "compatible" } else { "incompatible" };
        let instead = rule.instead.map(|instead| format!(": {instead}")).unwrap_or_default();
        text += &format!("| {} | {verdict} | {}{instead} |\n", rule.name, rule.what);
    }
    text
}
