//! Names with wildcards.

/// Whether a name matches a pattern with `*` and `?`.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    loop {
        match pattern.next() {
            None => return name.next().is_none(),
            Some('*') => {
                let rest = pattern.as_str();
                return (0..=name.as_str().len())
                    .filter_map(|skip| name.as_str().get(skip..))
                    .any(|tail| matches(rest, tail));
            }
            Some('?') => {
                if name.next().is_none() {
                    return false;
                }
            }
            Some(expected) => {
                if name.next() != Some(expected) {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*0", "veth10", true),
            ("e?h0", "eth0", true),
            ("e?h0", "eh0", false),
            ("", "", true),
            ("*", "ö", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
