//! Which issuers sign for calls that name none. An issuer and its siblings are a group, whichever
//! of them are active: retiring one of them leaves the group to the others.

/// An issuer, as far as its group is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its id.
    pub id: &'a str,
    /// Whether it signs; a retiring one does not.
    pub active: bool,
    /// The id of the issuer that it stands beside.
    pub sibling_of: Option<&'a str>,
}

impl<'a> Member<'a> {
    fn group(&self) -> &'a str {
        self.sibling_of.unwrap_or(self.id)
    }
}

/// The places, among `issuers`, of those that sign for calls that name no issuer: the active
/// members of the first group that has any. Groups come in the order of the issuers that give them
/// their names, and so do members: that issuer first, then its siblings. Empty only where none is
/// active.
pub fn default_group<'a>(issuers: impl IntoIterator<Item = Member<'a>>) -> Vec<usize> {
    let issuers: Vec<Member<'a>> = issuers.into_iter().collect();
    let of = |group| {
        issuers
            .iter()
            .enumerate()
            .filter(move |(_, member)| member.active && member.group() == group)
    };
    let mut names = issuers
        .iter()
        .filter(|issuer| issuer.sibling_of.is_none())
        .map(|issuer| issuer.id);
    let Some(group) = names.find(|group| of(*group).next().is_some()) else {
        return Vec::new();
    };
    let mut members: Vec<_> = of(group).collect();
    // Stable: only the issuer that the group is named after moves.
    members.sort_by_key(|(_, member)| member.sibling_of.is_some());
    members.into_iter().map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_signs_as_long_as_one_of_it_is_active() {
        let (on, off) = (true, false);
        let issuer = |id, active, sibling_of| Member {
            id,
            active,
            sibling_of,
        };
        let (a, b_of_a, c) = (
            |on| issuer("a", on, None),
            |on| issuer("b", on, Some("a")),
            |on| issuer("c", on, None),
        );
        for (issuers, expected) in [
            ([a(on), b_of_a(on), c(on)], vec![0, 1]),
            ([a(off), b_of_a(on), c(on)], vec![1]),
            ([a(on), b_of_a(off), c(on)], vec![0]),
            ([a(off), b_of_a(off), c(on)], vec![2]),
            ([a(off), b_of_a(off), c(off)], vec![]),
            ([b_of_a(on), c(on), a(on)], vec![1]),
            ([b_of_a(on), a(on), c(on)], vec![1, 0]),
            ([b_of_a(on), c(off), a(off)], vec![0]),
        ] {
            assert_eq!(default_group(issuers), expected, "{issuers:?}");
        }
    }
}
