//! `--initial-cluster`: all members of a new cluster, as `quorate server` and `quorate snapshot restore`
//! take them.

use anyhow::{Context as _, ensure};
use quorate::core::config::InitialMember;

/// The members in `list` (`name=url,name=url,…`); without one, the member `name` alone. `name` must be
/// listed with the peer URLs `advertised`.
///
/// # Errors
/// Which flag is wrong, and how.
pub(crate) fn members(
    name: &str,
    list: Option<&str>,
    advertised: &[String],
) -> anyhow::Result<Vec<InitialMember>> {
    let Some(list) = list else {
        return Ok(vec![InitialMember {
            name: name.to_owned(),
            peer_urls: advertised.to_vec(),
        }]);
    };
    let mut members: Vec<InitialMember> = Vec::new();
    for item in list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let (name, url) = item
            .split_once('=')
            .with_context(|| format!("--initial-cluster: `{item}` is not name=url"))?;
        match members.iter_mut().find(|member| member.name == name) {
            Some(member) => member.peer_urls.push(url.to_owned()),
            None => members.push(InitialMember {
                name: name.to_owned(),
                peer_urls: vec![url.to_owned()],
            }),
        }
    }
    let own = members
        .iter()
        .find(|member| member.name == name)
        .with_context(|| format!("--initial-cluster does not list this member, --name {name}"))?;
    let mut advertised = advertised.to_vec();
    let mut listed = own.peer_urls.clone();
    advertised.sort();
    listed.sort();
    ensure!(
        advertised == listed,
        "--initial-cluster gives {name} as {}, --initial-advertise-peer-urls as {}",
        listed.join(","),
        advertised.join(",")
    );
    Ok(members)
}
