//! Label selectors, parsed once and evaluated often.
//!
//! Rules: the Kubernetes documentation on "Labels and Selectors".

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::error::{Fault, Rule};

pub type Labels = BTreeMap<String, String>;

/// Longest name part of a label key, and longest label value, in bytes.
const MAX_NAME: usize = 63;
/// Longest prefix part of a label key, in bytes.
const MAX_PREFIX: usize = 253;

/// A parsed `metav1.LabelSelector`; the empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    DoesNotExist(String),
}

/// Why a selector cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectorError {
    /// Path within the selector, such as `matchExpressions[0].operator`.
    pub field: String,
    pub rule: SelectorRule,
}

/// The rules of selectors, one variant each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorRule {
    #[error("{0:?} is not an operator; use In, NotIn, Exists or DoesNotExist")]
    Operator(String),
    #[error("{0} needs at least one value")]
    NoValues(String),
    #[error("{0} takes no values; remove them")]
    Values(String),
    #[error(
        "{0:?} is not a label key: an optional DNS prefix and \"/\", then up to 63 letters, \
         digits, '-', '_' and '.', with a letter or digit at both ends"
    )]
    Key(String),
    #[error(
        "{0:?} is not a label value: up to 63 letters, digits, '-', '_' and '.', with a letter or \
         digit at both ends"
    )]
    Value(String),
    #[error("the value {0:?} is given twice; remove one")]
    DuplicateValue(String),
    #[error("this requirement is given twice; remove one")]
    DuplicateExpression,
}

impl SelectorRule {
    /// See [`Rule::name`].
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Operator(_) => "SelectorOperator",
            Self::NoValues(_) => "SelectorWithoutValues",
            Self::Values(_) => "SelectorWithValues",
            Self::Key(_) => "LabelKey",
            Self::Value(_) => "LabelValue",
            Self::DuplicateValue(_) => "DuplicateValue",
            Self::DuplicateExpression => "DuplicateExpression",
        }
    }
}

impl Selector {
    /// # Errors
    /// The first rule that the selector breaks, if any.
    pub fn parse(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            let error = |rule| SelectorError { field: "matchLabels".to_owned(), rule };
            check_key(key).map_err(error)?;
            check_value(value).map_err(error)?;
            requirements.push(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
        }
        let from_labels = requirements.len();
        for (i, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let requirement = parse_requirement(expression).map_err(|(member, rule)| {
                SelectorError { field: format!("matchExpressions[{i}]{member}"), rule }
            })?;
            if requirements[from_labels..].contains(&requirement) {
                return Err(SelectorError {
                    field: format!("matchExpressions[{i}]"),
                    rule: SelectorRule::DuplicateExpression,
                });
            }
            requirements.push(requirement);
        }
        Ok(Self { requirements })
    }

    /// True when `labels` meet every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::DoesNotExist(key) => !labels.contains_key(key),
        })
    }
}

/// Labels as one text: a map takes ten times the space, and few configurations look at labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedLabels(Box<str>);

/// No label that an API server admits contains it.
const LABEL_END: char = '\0';

impl PackedLabels {
    pub fn new<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut text = String::new();
        for (key, value) in labels {
            if !key.contains(LABEL_END) && !value.contains(LABEL_END) {
                text.extend([key.as_str(), "\0", value.as_str(), "\0"]);
            }
        }
        Self(text.into())
    }

    pub fn unpack(&self) -> Labels {
        let mut labels = Labels::new();
        let mut words = self.0.split_terminator(LABEL_END);
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }
}

impl<const N: usize> From<[(String, String); N]> for PackedLabels {
    fn from(labels: [(String, String); N]) -> Self {
        Self::new(labels.iter().map(|(key, value)| (key, value)))
    }
}

/// Parses a list of selectors, with every fault of it; those that are faulty are missing in the
/// result.
pub(crate) fn parse_list(
    field: &str,
    selectors: &[LabelSelector],
    faults: &mut Vec<Fault>,
) -> Vec<Selector> {
    let mut parsed = Vec::with_capacity(selectors.len());
    let mut seen = BTreeSet::new();
    for (i, selector) in selectors.iter().enumerate() {
        let field = format!("{field}[{i}]");
        match Selector::parse(selector) {
            Ok(selector) => parsed.push(selector),
            Err(error) => faults.push(Fault::of_selector(&field, error)),
        }
        // As written, but for the order of values: two different ways to say the same are no
        // fault.
        if !seen.insert(with_sorted_values(selector)) {
            faults.push(Fault::new(field, Rule::DuplicateSelector));
        }
    }
    parsed
}

/// True when one of `selectors` matches, or when there is none.
pub(crate) fn any_matches(selectors: &[Selector], labels: &Labels) -> bool {
    selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
}

fn parse_requirement(
    expression: &LabelSelectorRequirement,
) -> Result<Requirement, (String, SelectorRule)> {
    let LabelSelectorRequirement { key, operator, values } = expression;
    let in_values = |rule| (".values".to_owned(), rule);
    check_key(key).map_err(|rule| (".key".to_owned(), rule))?;
    let mut set = BTreeSet::new();
    for (i, value) in values.iter().flatten().enumerate() {
        let error = |rule| (format!(".values[{i}]"), rule);
        check_value(value).map_err(error)?;
        if !set.insert(value.clone()) {
            return Err(error(SelectorRule::DuplicateValue(value.clone())));
        }
    }
    let needs_values = match operator.as_str() {
        "In" | "NotIn" => true,
        "Exists" | "DoesNotExist" => false,
        _ => return Err((".operator".to_owned(), SelectorRule::Operator(operator.clone()))),
    };
    if needs_values && set.is_empty() {
        return Err(in_values(SelectorRule::NoValues(operator.clone())));
    }
    if !needs_values && !set.is_empty() {
        return Err(in_values(SelectorRule::Values(operator.clone())));
    }
    let key = key.clone();
    Ok(match operator.as_str() {
        "In" => Requirement::In(key, set),
        "NotIn" => Requirement::NotIn(key, set),
        "Exists" => Requirement::Exists(key),
        _ => Requirement::DoesNotExist(key),
    })
}

fn check_key(key: &str) -> Result<(), SelectorRule> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let prefix_is_good = prefix.is_none_or(|prefix| {
        prefix.len() <= MAX_PREFIX
            && prefix.split('.').all(|label| {
                is_framed(label, |b| b == b'-') && !label.bytes().any(|b| b.is_ascii_uppercase())
            })
    });
    if prefix_is_good && name.len() <= MAX_NAME && is_framed(name, is_inner) {
        Ok(())
    } else {
        Err(SelectorRule::Key(key.to_owned()))
    }
}

fn check_value(value: &str) -> Result<(), SelectorRule> {
    if value.is_empty() || (value.len() <= MAX_NAME && is_framed(value, is_inner)) {
        Ok(())
    } else {
        Err(SelectorRule::Value(value.to_owned()))
    }
}

fn is_inner(byte: u8) -> bool {
    matches!(byte, b'-' | b'_' | b'.')
}

/// Letters and digits, between them also what `inner` allows.
fn is_framed(text: &str, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || inner(b))
}

/// A selector as a text that two of them share when they differ in the order of values only.
fn with_sorted_values(selector: &LabelSelector) -> String {
    let mut selector = selector.clone();
    for expression in selector.match_expressions.iter_mut().flatten() {
        expression.values.iter_mut().for_each(|values| values.sort());
    }
    serde_json::json!(selector).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::fields;

    fn selector(value: &Value) -> LabelSelector {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] })
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn matching_is_that_of_kubernetes() {
        let a1 = labels(&[("a", "1")]);
        let b1 = labels(&[("b", "1")]);
        for (selector, matches_a1, matches_b1) in [
            (json!({}), true, true),
            (json!({ "matchLabels": { "a": "1" } }), true, false),
            (json!({ "matchLabels": { "a": "2" } }), false, false),
            (json!({ "matchLabels": { "a": "1", "b": "1" } }), false, false),
            (expression("a", "In", &["1", "2"]), true, false),
            (expression("a", "In", &["2"]), false, false),
            // An absent label has no value, so it has none of these.
            (expression("a", "NotIn", &["1"]), false, true),
            (expression("a", "NotIn", &["2"]), true, true),
            (expression("a", "Exists", &[]), true, false),
            (expression("a", "DoesNotExist", &[]), false, true),
        ] {
            let parsed = Selector::parse(&self::selector(&selector)).unwrap();
            assert_eq!(parsed.matches(&a1), matches_a1, "{selector}");
            assert_eq!(parsed.matches(&b1), matches_b1, "{selector}");
        }
    }

    #[test]
    fn faulty_selectors_are_refused_by_field_and_rule() {
        let long = "x".repeat(64);
        for (selector, field, rule) in [
            (
                expression("a", "surrounds", &["1"]),
                "matchExpressions[0].operator",
                SelectorRule::Operator("surrounds".to_owned()),
            ),
            (
                expression("a", "", &["1"]),
                "matchExpressions[0].operator",
                SelectorRule::Operator(String::new()),
            ),
            (
                expression("a", "In", &[]),
                "matchExpressions[0].values",
                SelectorRule::NoValues("In".to_owned()),
            ),
            (
                expression("a", "Exists", &["1"]),
                "matchExpressions[0].values",
                SelectorRule::Values("Exists".to_owned()),
            ),
            (
                expression("a", "In", &["1", "2", "1"]),
                "matchExpressions[0].values[2]",
                SelectorRule::DuplicateValue("1".to_owned()),
            ),
            (
                expression("", "Exists", &[]),
                "matchExpressions[0].key",
                SelectorRule::Key(String::new()),
            ),
            (
                json!({ "matchLabels": { "a": long } }),
                "matchLabels",
                SelectorRule::Value(long.clone()),
            ),
            (
                json!({ "matchExpressions": [
                    { "key": "a", "operator": "In", "values": ["1", "2"] },
                    { "key": "a", "operator": "In", "values": ["2", "1"] },
                ] }),
                "matchExpressions[1]",
                SelectorRule::DuplicateExpression,
            ),
        ] {
            let error = Selector::parse(&self::selector(&selector)).unwrap_err();
            assert_eq!((error.field.as_str(), &error.rule), (field, &rule), "{selector}");
        }
    }

    #[test]
    fn label_keys_and_values_are_checked() {
        for key in ["a", "a.b-c_D", "kubernetes.io/hostname", "1.2/3"] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in ["", "/", "a/", "/a", "a/b/c", "-a", "a-", "a b", "ä", "A.io/x", "a..b/x"] {
            assert_eq!(check_key(key), Err(SelectorRule::Key(key.to_owned())), "{key}");
        }
        for value in ["", "a", "A.b-c_1"] {
            assert_eq!(check_value(value), Ok(()), "{value}");
        }
        for value in [".a", "a.", "a/b", "a b", "ä"] {
            assert_eq!(check_value(value), Err(SelectorRule::Value(value.to_owned())), "{value}");
        }
    }

    #[test]
    fn a_list_reports_every_fault_and_keeps_the_good() {
        let list = [
            expression("a", "In", &["1", "2"]),
            expression("a", "In", &["2", "1"]),
            expression("a", "Like", &["1"]),
            json!({}),
        ];
        let list: Vec<LabelSelector> = list.iter().map(selector).collect();
        let mut faults = Vec::new();
        let parsed = parse_list("spec.nodeSelectors", &list, &mut faults);
        assert_eq!(parsed.len(), 3);
        assert_eq!(
            fields(&faults),
            ["spec.nodeSelectors[1]", "spec.nodeSelectors[2].matchExpressions[0].operator"]
        );
    }
}
