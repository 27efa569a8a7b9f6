//! The table `dead` as queries see it: letters with their state, made of the rows for letters and those for what was
//! done about them.

use std::collections::BTreeMap;

use datafusion::common::{Column, JoinType};
use datafusion::functions_aggregate::expr_fn::max;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit, when};
use iot_schemas::Result;
use iot_schemas::dead::{DeadId, DeadSelection};

/// What names a letter.
const KEY: [&str; 3] = ["_node", "_seq", "stream"];
/// What an action says.
const ACTION: [&str; 5] = ["action", "action_at", "action_by", "action_note", "action_seq"];
/// What a letter says at the end, where it is most often null.
const TAIL: [&str; 5] = ["retry_of", "cut_from", "content_type", "user_properties", "schema_version"];
/// The payload's length. Neither `length` nor `octet_length` takes binary values.
const BYTES: &str = "octet_length(encode(payload, 'hex')) / 2";
const LETTERS: &str = "letters";
const ACTIONS: &str = "actions";

/// The letters among `rows`, each with what was done about it.
pub(crate) fn letters(rows: LogicalPlan) -> Result<LogicalPlan> {
    let actions = LogicalPlanBuilder::from(rows.clone())
        .filter(plain("action").is_not_null())?
        // There is one action per letter. Should there ever be two, the letter is still there once.
        .aggregate(KEY.map(plain), ACTION.map(|name| max(plain(name)).alias(name)))?
        .alias(ACTIONS)?
        .build()?;
    let key = |side: &str| KEY.map(|name| Column::new(Some(side), name)).to_vec();
    let of = |name: &str| Expr::Column(Column::new(Some(LETTERS), name)).alias(name);
    let by = |name: &str| Expr::Column(Column::new(Some(ACTIONS), name));
    let columns = ["received_at", "stream", "topic", "reason", "payload", "_node", "_seq"].map(of);
    let state = [
        when(by("action").is_null(), lit("open")).otherwise(by("action"))?.alias("status"),
        by("action_at").alias("resolved_at"),
        by("action_by").alias("resolved_by"),
        by("action_note").alias("note"),
        by("action_seq").alias("resolved_seq"),
    ];
    let plan = LogicalPlanBuilder::from(rows)
        .filter(plain("action").is_null())?
        .alias(LETTERS)?
        .join(actions, JoinType::Left, (key(LETTERS), key(ACTIONS)), None)?
        .project(columns.into_iter().chain(state).chain(TAIL.map(of)))?;
    Ok(plan.build()?)
}

fn plain(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// The newest letters, without their payloads.
pub fn list_sql(selection: &DeadSelection, status: Option<&str>, limit: usize) -> String {
    let mut conditions = conditions(selection);
    conditions.extend(status.map(|status| format!("status = {}", quoted(status))));
    format!(
        "SELECT _node, _seq, received_at, stream, topic, reason, {BYTES} AS bytes, status, resolved_at, \
         resolved_by, note, resolved_seq, retry_of, schema_version FROM dead WHERE {} ORDER BY received_at DESC, _seq DESC LIMIT {limit}",
        all_of(&conditions)
    )
}

/// All that is known about the letters with this id.
pub fn letter_sql(id: &DeadId) -> String {
    format!("SELECT * FROM dead WHERE {} ORDER BY stream", is(id))
}

/// Node, number, stream, status and payload length of the letters that are meant, in this order, after `after`. Only
/// open ones, unless they are named; of the node of `up_to` none with a higher number.
pub fn open_sql(
    selection: &DeadSelection,
    up_to: (&str, u64),
    after: Option<&DeadId>,
    limit: usize,
) -> String {
    let mut conditions = conditions(selection);
    if selection.ids.is_empty() {
        conditions.push("status = 'open'".to_owned());
    }
    conditions.push(format!("(_node <> {} OR _seq <= {})", quoted(up_to.0), up_to.1));
    conditions.extend(after.map(|after| {
        let (node, seq) = (quoted(&after.node), after.seq);
        let stream = quoted(after.stream.as_deref().unwrap_or_default());
        format!(
            "(_node > {node} OR (_node = {node} AND (_seq > {seq} OR (_seq = {seq} AND stream > {stream}))))"
        )
    }));
    format!(
        "SELECT _node, _seq, stream, status, {BYTES} FROM dead WHERE {} \
         ORDER BY _node, _seq, stream LIMIT {limit}",
        all_of(&conditions)
    )
}

/// Node, number, stream, topic, payload, arrival, first letter, cut, content type and user properties of the open letters at the positions of `ids`.
pub fn payloads_sql(ids: &[DeadId]) -> String {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    ids.iter().for_each(|id| by_node.entry(&id.node).or_default().push(id.seq.to_string()));
    let of_node = |(node, seqs): (&str, Vec<String>)| {
        format!("(_node = {} AND _seq IN ({}))", quoted(node), seqs.join(", "))
    };
    let ids: Vec<String> = by_node.into_iter().map(of_node).collect();
    format!(
        "SELECT _node, _seq, stream, topic, payload, received_at, retry_of, cut_from, content_type, \
         user_properties FROM dead WHERE status = 'open' AND ({}) ORDER BY _node, _seq, stream",
        ids.join(" OR ")
    )
}

fn conditions(selection: &DeadSelection) -> Vec<String> {
    let DeadSelection { ids, stream, reason, condition, .. } = selection;
    let mut conditions = Vec::new();
    if !ids.is_empty() {
        conditions.push(format!("({})", ids.iter().map(is).collect::<Vec<_>>().join(" OR ")));
    }
    conditions.extend(stream.iter().map(|stream| format!("stream = {}", quoted(stream))));
    conditions.extend(reason.iter().map(|reason| format!("strpos(reason, {}) > 0", quoted(reason))));
    conditions.extend(condition.iter().map(|condition| format!("({condition})")));
    conditions
}

fn is(id: &DeadId) -> String {
    let stream = id.stream.as_ref().map(|stream| format!(" AND stream = {}", quoted(stream)));
    format!("(_node = {} AND _seq = {}{})", quoted(&id.node), id.seq, stream.unwrap_or_default())
}

fn all_of(conditions: &[String]) -> String {
    if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_a_text() {
        let selection = DeadSelection { reason: Some("it's; --".into()), ..DeadSelection::default() };
        let sql = list_sql(&selection, Some("open"), 5);
        assert!(sql.contains("strpos(reason, 'it''s; --') > 0 AND status = 'open'"), "{sql}");
    }
}
