//! The kinds of provider by name, and what each of them brings where the operator says nothing: addresses, keys and
//! the small ways in which servers that speak the same protocol differ.

use serde::Deserialize;
use url::Url;

use crate::config::ProviderConfig;
use crate::config::schema::FALLBACK_KEYS;

/// What a provider is, as `kind` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// The Anthropic Messages API.
    Anthropic,
    /// OpenAI, or a server that speaks its chat completions.
    Openai,
    /// OpenAI's Responses API, or a server that speaks it.
    OpenaiResponses,
    /// Ollama.
    Ollama,
    /// vLLM.
    Vllm,
    /// The server of llama.cpp.
    LlamaCpp,
    /// OpenRouter.
    Openrouter,
    /// Gemini's endpoint for OpenAI clients.
    Gemini,
    /// A script of turns, for demos and tests: no key and no network.
    Scripted,
}

/// What is spoken with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The Messages API.
    Messages,
    /// Chat completions or responses.
    Openai,
}

/// What a kind brings: its name, its address, and the members that differ from the defaults of `config/default.toml`.
struct Preset {
    kind: ProviderKind,
    name: &'static str,
    /// Members in the order of the table of keys, each with its default.
    members: &'static [(&'static str, &'static str)],
    /// The vendor whose variable serves as a key; a provider at the vendor's own address needs one.
    vendor: Option<&'static str>,
}

/// The kinds, the first first in messages. Local servers do not tell whether their model sees images.
const PRESETS: &[Preset] = &[
    Preset { kind: ProviderKind::Anthropic, name: "anthropic", members: &[], vendor: Some("anthropic") },
    Preset {
        kind: ProviderKind::Openai,
        name: "openai",
        members: &[("base_url", "https://api.openai.com/v1"), ("auth", "bearer"), ("model", "gpt-5.6")],
        vendor: Some("openai"),
    },
    Preset {
        kind: ProviderKind::OpenaiResponses,
        name: "openai-responses",
        members: &[
            ("base_url", "https://api.openai.com/v1"),
            ("auth", "bearer"),
            ("model", "gpt-5.6"),
            ("api", "responses"),
        ],
        vendor: Some("openai"),
    },
    Preset {
        kind: ProviderKind::Ollama,
        name: "ollama",
        members: &[
            ("base_url", "http://127.0.0.1:11434/v1"),
            ("auth", "bearer"),
            ("model", ""),
            ("api", "chat"),
            ("images", "false"),
        ],
        vendor: None,
    },
    Preset {
        kind: ProviderKind::Vllm,
        name: "vllm",
        members: &[
            ("base_url", "http://127.0.0.1:8000/v1"),
            ("auth", "bearer"),
            ("model", ""),
            // It refuses a limit that does not fit into what the prompt leaves of the model's window.
            ("max_tokens", "4096"),
            ("api", "chat"),
            ("images", "false"),
        ],
        vendor: None,
    },
    Preset {
        kind: ProviderKind::LlamaCpp,
        name: "llama-cpp",
        members: &[
            ("base_url", "http://127.0.0.1:8080/v1"),
            ("auth", "bearer"),
            // The server has one model and takes any name for it.
            ("model", "default"),
            ("api", "chat"),
            ("images", "false"),
        ],
        vendor: None,
    },
    Preset {
        kind: ProviderKind::Openrouter,
        name: "openrouter",
        members: &[
            ("base_url", "https://openrouter.ai/api/v1"),
            ("auth", "bearer"),
            ("model", "openrouter/auto"),
            ("api", "chat"),
        ],
        vendor: Some("openrouter"),
    },
    Preset {
        kind: ProviderKind::Gemini,
        name: "gemini",
        members: &[
            ("base_url", "https://generativelanguage.googleapis.com/v1beta/openai"),
            ("auth", "bearer"),
            ("model", "gemini-flash-latest"),
            ("api", "chat"),
        ],
        vendor: Some("gemini"),
    },
    Preset { kind: ProviderKind::Scripted, name: "scripted", members: &[], vendor: None },
];

/// What a provider can be, as it is written.
pub const PROVIDER_KINDS: &[&str] = &{
    let mut names = [""; PRESETS.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = PRESETS[at].name;
        at += 1;
    }
    names
};

/// What a kind brings for a member of a provider, where it differs from the default of that member.
pub fn preset(kind: &str, member: &str) -> Option<&'static str> {
    let preset = PRESETS.iter().find(|preset| preset.name == kind)?;
    preset.members.iter().find(|(name, _)| *name == member).map(|(_, value)| *value)
}

/// The vendor whose variable serves providers of this kind that have no key of their own.
pub fn vendor(kind: &str) -> Option<&'static str> {
    PRESETS.iter().find(|preset| preset.name == kind)?.vendor
}

impl ProviderKind {
    fn preset(self) -> &'static Preset {
        PRESETS.iter().find(|preset| preset.kind == self).expect("every kind has its preset; a test holds it")
    }

    /// The kind as it is written.
    pub fn as_str(self) -> &'static str {
        self.preset().name
    }

    /// What is spoken with a provider of this kind. A script speaks the Messages API.
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Anthropic | Self::Scripted => Protocol::Messages,
            Self::Openai
            | Self::OpenaiResponses
            | Self::Ollama
            | Self::Vllm
            | Self::LlamaCpp
            | Self::Openrouter
            | Self::Gemini => Protocol::Openai,
        }
    }
}

impl ProviderConfig {
    /// A provider of this kind with all that the kind brings.
    pub fn of(kind: ProviderKind) -> Self {
        let text = |member: &str| kind.preset().members.iter().find(|(name, _)| *name == member).map(|(_, text)| *text);
        let fallback = Self::default();
        Self {
            kind,
            base_url: text("base_url").map_or(fallback.base_url, str::to_owned),
            auth: if text("auth") == Some("bearer") { super::AuthHeader::Bearer } else { fallback.auth },
            model: text("model").map_or(fallback.model, str::to_owned),
            api: match text("api") {
                Some("chat") => super::Api::Chat,
                Some("responses") => super::Api::Responses,
                _ => fallback.api,
            },
            max_tokens: text("max_tokens").and_then(|text| text.parse().ok()).unwrap_or(fallback.max_tokens),
            images: text("images").map_or(fallback.images, |text| text == "true"),
            ..Self::default()
        }
    }

    /// The vendor's own variable for its key.
    pub fn key_variable(&self) -> Option<&'static str> {
        let vendor = self.kind.preset().vendor?;
        FALLBACK_KEYS.iter().find(|(_, of)| *of == vendor).map(|(variable, _)| *variable)
    }

    /// Whether calls without a key are refused before they are sent: a vendor's own address wants one, while a server
    /// elsewhere may do without.
    pub fn needs_key(&self) -> bool {
        match self.kind {
            // Whatever stands in for the API wants its header; any text will do where it is not checked.
            ProviderKind::Anthropic => true,
            ProviderKind::Scripted => false,
            kind => {
                let host = |text: &str| Url::parse(text.trim()).ok().and_then(|url| url.host_str().map(str::to_owned));
                let own = preset(kind.as_str(), "base_url").and_then(host);
                kind.preset().vendor.is_some() && own.is_some() && own == host(&self.base_url)
            }
        }
    }

    /// Whether this is OpenAI itself, which is stricter than the servers that imitate it.
    pub fn is_openai_itself(&self) -> bool {
        matches!(self.kind, ProviderKind::Openai | ProviderKind::OpenaiResponses) && {
            let url = Url::parse(self.base_url.trim()).ok();
            let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
            host == "api.openai.com" || host.ends_with(".api.openai.com") || host.ends_with(".openai.azure.com")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::KEYS;

    #[test]
    fn every_kind_is_read_from_its_name_and_names_members_that_exist() {
        for preset in PRESETS {
            let kind: ProviderKind = serde_json::from_value(preset.name.into()).expect("the name is the kind's");
            assert_eq!((kind, kind.as_str()), (preset.kind, preset.name));
            for (member, value) in preset.members {
                let path = format!("llm.providers.*.{member}");
                let key = KEYS.iter().find(|key| key.path == path).unwrap_or_else(|| panic!("{path} is no key"));
                assert!(key.kind.parse(value).is_ok(), "{}: {member} = {value:?}", preset.name);
            }
            assert_eq!(ProviderConfig::of(kind).kind, kind);
        }
    }

    #[test]
    fn only_the_vendors_own_addresses_need_a_key() {
        let needs = |kind, base_url: Option<&str>| {
            let config = ProviderConfig::of(kind);
            let base_url = base_url.map_or(config.base_url.clone(), str::to_owned);
            ProviderConfig { base_url, ..config }.needs_key()
        };
        for kind in [ProviderKind::Anthropic, ProviderKind::Openai, ProviderKind::Openrouter, ProviderKind::Gemini] {
            assert!(needs(kind, None), "{kind:?}");
        }
        for kind in [ProviderKind::Ollama, ProviderKind::Vllm, ProviderKind::LlamaCpp, ProviderKind::Scripted] {
            assert!(!needs(kind, None), "{kind:?}");
        }
        assert!(!needs(ProviderKind::Openai, Some("http://localhost:8000/v1")));
        assert!(needs(ProviderKind::OpenaiResponses, Some("https://api.openai.com")));
    }

    #[test]
    fn openai_itself_is_told_by_its_address() {
        let at = |base_url: &str| {
            ProviderConfig { base_url: base_url.to_owned(), ..ProviderConfig::of(ProviderKind::Openai) }
                .is_openai_itself()
        };
        assert!(at("https://api.openai.com/v1") && at("https://eu.api.openai.com") && at("https://x.openai.azure.com"));
        assert!(!at("http://127.0.0.1:8000/v1") && !at("https://notapi.openai.com.example"));
        assert!(!ProviderConfig::of(ProviderKind::Gemini).is_openai_itself());
    }
}
