//! Settings: what is published, by whom, what is tried out, and who runs what.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::look::Look;
use crate::client::Identity;
use crate::config;
use crate::error::Result;
use crate::keys::Revision;

/// A namespace of settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConfigInfo {
    /// Its name.
    pub namespace: String,
    /// Its settings, by their keys.
    pub settings: BTreeMap<String, SettingInfo>,
    /// How many instances say what they run.
    pub instances: u64,
    /// Why instances do not run what is published, by their ids.
    pub rejections: BTreeMap<String, String>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SettingInfo {
    /// The number of its last publication.
    pub version: u64,
    /// The value.
    pub value: Value,
    /// What the publisher noted; may be empty.
    pub note: String,
    /// Who published it.
    pub by: Identity,
    /// When, in milliseconds since the Unix epoch by the publisher's wall clock.
    pub at_ms: u64,
    /// The revision at which it was published.
    pub revision: Revision,
    /// The rules by which some instances are given another value.
    pub gray: Vec<String>,
}

/// All namespaces.
pub(super) async fn configs(look: &Look) -> Result<Vec<ConfigInfo>> {
    let mut found = Vec::new();
    for namespace in look.names(config::KIND).await? {
        let layout = config::Layout::of(&namespace);
        let mut info = ConfigInfo {
            namespace,
            settings: BTreeMap::new(),
            instances: 0,
            rejections: BTreeMap::new(),
        };
        let mut gray: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for kv in look.list(layout.live()).await? {
            match layout.live_part(&kv.key) {
                Some(config::Live::Value(key)) => {
                    let Ok(record) = serde_json::from_slice::<config::Record>(&kv.value) else {
                        continue;
                    };
                    let setting = SettingInfo {
                        version: record.version,
                        value: record.value,
                        note: record.note,
                        by: record.by,
                        at_ms: record.at_ms,
                        revision: Revision(kv.mod_revision),
                        gray: Vec::new(),
                    };
                    info.settings.insert(key, setting);
                }
                Some(config::Live::Rule(key, rule)) => gray.entry(key).or_default().push(rule),
                None => {}
            }
        }
        for (key, rules) in gray {
            if let Some(setting) = info.settings.get_mut(&key) {
                setting.gray = rules;
            }
        }
        for kv in look.list(layout.all_acknowledgements()).await? {
            let Some(instance) = layout.instance(&kv.key) else {
                continue;
            };
            info.instances += 1;
            if let Some(why) = config::rejection(&kv) {
                info.rejections.insert(instance, why);
            }
        }
        found.push(info);
    }
    Ok(found)
}
