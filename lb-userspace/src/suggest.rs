//! Names that were almost right.

/// The known name that `name` may have meant.
pub(crate) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = 1 + name.len() / 3;
    known.map(|known| (distance(name, known), known)).filter(|(far, _)| *far <= limit).min().map(|(_, known)| known)
}

/// The known name that `name` is, but for one character or for upper and lower case.
pub(crate) fn almost<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.map(|known| (distance(name, known), known)).find(|(far, _)| *far <= 1).map(|(_, known)| known)
}

/// Levenshtein distance, upper and lower case alike.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, left) in one.to_lowercase().chars().enumerate() {
        let mut diagonal = index;
        let mut last = index + 1;
        let mut next = vec![last];
        for (right, above) in other.iter().zip(row.iter().skip(1)) {
            let cost = if left == *right { diagonal } else { 1 + diagonal.min(*above).min(last) };
            diagonal = *above;
            last = cost;
            next.push(cost);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_only_made_when_close() {
        let known = || ["hostnameOverride", "mode"].into_iter();
        assert_eq!(closest("hostnameoverride", known()), Some("hostnameOverride"));
        assert_eq!(closest("hostOverride", known()), Some("hostnameOverride"));
        assert_eq!(closest("zzz", known()), None);
        assert_eq!(almost("Mode", known()), Some("mode"));
        assert_eq!(almost("modes", known()), Some("mode"));
        assert_eq!(almost("node", known()), Some("mode"));
        assert_eq!(almost("nod", known()), None);
    }
}
