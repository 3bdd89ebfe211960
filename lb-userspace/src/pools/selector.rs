//! Label selectors, as `metav1.LabelSelector` has them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// A selector; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with just these values.
    pub match_labels: BTreeMap<String, String>,
    /// Further conditions; all must hold.
    pub match_expressions: Vec<Expression>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expression {
    /// Label.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// Of what values.
    #[serde(default)]
    pub values: BTreeSet<String>,
}

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Operator {
    /// Its value is one of these.
    In,
    /// It is none of these, or the label is not there.
    NotIn,
    /// It is there.
    Exists,
    /// It is not.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether it selects what has these labels.
    pub(super) fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let equal = |(key, value): (&String, &String)| label(key) == Some(value);
        let holds = |expression: &Expression| {
            let value = label(&expression.key);
            match expression.operator {
                Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(equal) && self.match_expressions.iter().all(holds)
    }

    /// Why the API server would not take it, and the field.
    pub(super) fn wrong(&self) -> Option<(String, &'static str)> {
        self.match_expressions.iter().enumerate().find_map(|(index, expression)| {
            let Expression { key, operator, values } = expression;
            let at = |field: &str| format!("matchExpressions[{index}].{field}");
            match operator {
                _ if key.is_empty() => Some((at("key"), "a label is needed")),
                Operator::In | Operator::NotIn if values.is_empty() => Some((at("values"), "In and NotIn need values")),
                Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                    Some((at("values"), "Exists and DoesNotExist have no values"))
                }
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selects(selector: serde_json::Value, labels: &[(&str, &str)]) -> bool {
        let selector: LabelSelector = serde_json::from_value(selector).expect("a selector");
        assert_eq!(selector.wrong(), None);
        selector.matches(|key| labels.iter().find(|(label, _)| *label == key).map(|(_, value)| *value))
    }

    #[test]
    fn labels_and_expressions_select_as_the_api_does() {
        use serde_json::json;
        let expression = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]});
        assert!(selects(json!({}), &[]));
        assert!(selects(json!({"matchLabels": {"tier": "a"}}), &[("tier", "a"), ("x", "y")]));
        assert!(!selects(json!({"matchLabels": {"tier": "a", "x": "z"}}), &[("tier", "a"), ("x", "y")]));
        for (operator, values, with_a, with_b, without) in [
            ("In", &["a"][..], true, false, false),
            ("NotIn", &["a"], false, true, true),
            ("Exists", &[], true, true, false),
            ("DoesNotExist", &[], false, false, true),
        ] {
            let found = [&[("tier", "a")][..], &[("tier", "b")], &[]]
                .map(|labels| selects(expression(operator, values), labels));
            assert_eq!(found, [with_a, with_b, without], "{operator}");
        }
    }

    #[test]
    fn what_the_api_refuses_is_wrong() {
        let wrong = |json: &str| {
            serde_json::from_str::<LabelSelector>(json).expect("of its types").wrong().map(|(field, _)| field)
        };
        let values = Some("matchExpressions[0].values".to_owned());
        assert_eq!(wrong(r#"{"matchExpressions": [{"key": "a", "operator": "In"}]}"#), values);
        assert_eq!(wrong(r#"{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}"#), values);
        assert_eq!(
            wrong(r#"{"matchExpressions": [{"key": "", "operator": "Exists"}]}"#),
            Some("matchExpressions[0].key".to_owned())
        );
        assert!(serde_json::from_str::<LabelSelector>(r#"{"matchLabel": {}}"#).is_err());
    }
}
