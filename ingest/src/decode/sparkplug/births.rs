//! What a birth declares: the metrics of a node or a device, by name and by alias.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use iot_schemas::catalog::column_name;

use super::payload::{Metric, Payload};
use super::value::{TEMPLATE, malformed};
use super::wire::Malformed;

/// Templates may lie in each other this deep.
const MAX_DEPTH: usize = 8;
/// Metrics that a message may have, members of templates included. An empty one is two bytes in the payload.
const MAX_METRICS: usize = 65_536;
/// The path of a metric, which is in memory once for each member of a template. Column names are far shorter.
const MAX_PATH: usize = 1_024;

/// The declared metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Declared {
    /// By name.
    metrics: Vec<Declaration>,
    /// By alias: the number of the metric.
    aliases: Vec<(u64, u32)>,
}

/// A metric's name (the path of names, for the member of a template) and data type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Declaration {
    pub(super) name: Box<str>,
    pub(super) datatype: u32,
    /// Whether another metric of the birth would have the same column.
    #[serde(default)]
    pub(super) is_ambiguous: bool,
}

impl Declaration {
    fn new(name: &str, datatype: Option<u32>) -> Self {
        Self { name: name.into(), datatype: datatype.unwrap_or(0), is_ambiguous: false }
    }
}

impl Declared {
    /// What a birth declares, or why it declares nothing.
    pub(super) fn read(payload: &Payload<'_>) -> Result<Self, String> {
        let mut reader = Reader::default();
        each_metric(payload, &mut reader)?;
        let mut found = reader.found;
        found.sort();
        // A metric may be there with several times.
        found.dedup();
        for pair in found.windows(2) {
            if let [(one, _), (other, _)] = pair
                && one.name == other.name
            {
                let name = crate::decode::shorten(&one.name);
                return Err(format!("the birth declares the metric `{name}` in two ways"));
            }
        }
        let numbered = found.iter().zip(0u32..);
        let mut aliases: Vec<(u64, u32)> =
            numbered.filter_map(|((_, alias), number)| alias.map(|alias| (alias, number))).collect();
        aliases.sort_unstable();
        if let Some(pair) = aliases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("the birth gives the alias {} to two metrics", pair[0].0));
        }
        let mut metrics: Vec<Declaration> = found.into_iter().map(|(declaration, _)| declaration).collect();
        mark_ambiguous(&mut metrics);
        Ok(Self { metrics, aliases })
    }

    pub(super) fn by_alias(&self, alias: u64) -> Option<&Declaration> {
        let at = self.aliases.binary_search_by_key(&alias, |(alias, _)| *alias).ok()?;
        self.metrics.get(self.aliases.get(at)?.1 as usize)
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&Declaration> {
        let order = |declaration: &Declaration| -> Ordering { (*declaration.name).cmp(name) };
        self.metrics.get(self.metrics.binary_search_by(order).ok()?)
    }

    /// What it takes up in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let names: usize = self.metrics.iter().map(|declaration| declaration.name.len() + 40).sum();
        names + 16 * self.aliases.len()
    }
}

/// Marks metrics whose columns would be the same: no two of them may share one.
fn mark_ambiguous(metrics: &mut [Declaration]) {
    // A template has no column, its members do.
    let has_column = |metric: &Declaration| metric.datatype != TEMPLATE;
    let mut names: HashMap<String, usize> = HashMap::new();
    for metric in metrics.iter().filter(|metric| has_column(metric)) {
        *names.entry(column_name(&metric.name).to_lowercase()).or_default() += 1;
    }
    for metric in metrics.iter_mut().filter(|metric| has_column(metric)) {
        metric.is_ambiguous = names.get(&column_name(&metric.name).to_lowercase()).is_some_and(|n| *n > 1);
    }
}

/// Collects what a birth declares, each with its alias.
#[derive(Default)]
struct Reader {
    found: Vec<(Declaration, Option<u64>)>,
}

impl<'a> Visit<'a> for Reader {
    fn value(&mut self, path: &str, metric: &Metric<'a>) -> Result<(), String> {
        if metric.name.is_none() {
            return Err("a metric of a birth has no name".into());
        }
        self.found.push((Declaration::new(path, metric.datatype), metric.alias));
        Ok(())
    }

    fn template(&mut self, path: &str, metric: &Metric<'a>) -> Result<Option<String>, String> {
        if metric.name.is_none() {
            return Err("a template of a birth has no name".into());
        }
        // Data may name the whole of it by its alias.
        if metric.alias.is_some() {
            self.found.push((Declaration::new(path, Some(TEMPLATE)), metric.alias));
        }
        Ok(None)
    }
}

/// Who looks at the metrics of a message one by one.
pub(super) trait Visit<'a> {
    /// A metric that is not a template, and its path of names (`template/member`); the name of a metric that has none
    /// is empty.
    fn value(&mut self, path: &str, metric: &Metric<'a>) -> Result<(), String>;

    /// A template, before its members. Returns its path, if that is another than what is spelled there.
    fn template(&mut self, path: &str, metric: &Metric<'a>) -> Result<Option<String>, String>;
}

/// Shows every metric to `visit`. Definitions of templates are left out: they have no values.
pub(super) fn each_metric<'a>(payload: &Payload<'a>, visit: &mut impl Visit<'a>) -> Result<(), String> {
    let mut walk = Walk { path: String::new(), count: 0, visit };
    walk.all(payload.metrics(), Metric::default(), 1)
}

struct Walk<'v, V> {
    path: String,
    count: usize,
    visit: &'v mut V,
}

impl<'a, V: Visit<'a>> Walk<'_, V> {
    /// `outer` is the template that the metrics are members of: what it says of time holds for them too.
    fn all(
        &mut self,
        metrics: impl Iterator<Item = Result<Metric<'a>, Malformed>>,
        outer: Metric<'a>,
        depth: usize,
    ) -> Result<(), String> {
        let parent = self.path.len();
        for metric in metrics {
            let mut metric = metric.map_err(malformed)?;
            self.count += 1;
            if self.count > MAX_METRICS {
                return Err(format!("the message has more than {MAX_METRICS} metrics"));
            }
            metric.timestamp = metric.timestamp.or(outer.timestamp);
            metric.is_historical |= outer.is_historical;
            metric.is_transient |= outer.is_transient;
            if parent > 0 {
                self.path.push('/');
            }
            self.path.push_str(metric.name.unwrap_or_default());
            if self.path.len() > MAX_PATH {
                let name = crate::decode::shorten(&self.path);
                return Err(format!("the name `{name}` of a metric is longer than {MAX_PATH} bytes"));
            }
            match metric.template().map_err(malformed)? {
                Some(template) if template.is_definition => {}
                Some(_) if depth >= MAX_DEPTH => {
                    return Err(format!("templates may lie in each other at most {MAX_DEPTH} deep"));
                }
                Some(template) => match self.visit.template(&self.path, &metric)? {
                    Some(path) => {
                        let spelled = std::mem::replace(&mut self.path, path);
                        self.all(template.members(), metric, depth + 1)?;
                        self.path = spelled;
                    }
                    None => self.all(template.members(), metric, depth + 1)?,
                },
                None => self.visit.value(&self.path, &metric)?,
            }
            self.path.truncate(parent);
        }
        Ok(())
    }
}
