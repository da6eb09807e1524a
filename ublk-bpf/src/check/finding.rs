//! What a check comes to.

use serde::Serialize;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, which is stable.
    pub name: &'static str,
    /// How it is.
    pub state: FindingState,
    /// What was found.
    pub found: String,
    /// What to do, if anything.
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// A device can be served without it, with a loss that the finding names.
    Note,
    /// No device can be served without it.
    Missing,
    /// Something else has to be there before this can be looked at.
    Unknown,
}

impl FindingState {
    /// The word that the command prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Missing => "MISSING",
            Self::Unknown => "unknown",
        }
    }
}

impl Finding {
    fn new(name: &'static str, state: FindingState, found: impl Into<String>) -> Self {
        Self {
            name,
            state,
            found: found.into(),
            remedy: None,
        }
    }

    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, FindingState::Ok, found)
    }

    pub(super) fn note(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, FindingState::Note, found)
    }

    pub(super) fn missing(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, FindingState::Missing, found)
    }

    pub(super) fn unknown(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, FindingState::Unknown, found)
    }

    /// What to do about it.
    pub(super) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// Whether a device can be served, by these findings.
#[must_use]
pub fn can_serve(findings: &[Finding]) -> bool {
    let allows = |finding: &Finding| matches!(finding.state, FindingState::Ok | FindingState::Note);
    findings.iter().all(allows)
}
