//! Why a fetch brought no response. A response with an error status is none of these.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::clients::http::MAX_REDIRECTS;
use crate::clients::http::address::AddressRefused;
use crate::domain::outcome::Failure;
use crate::retry::Retry;

/// Why a fetch brought no response. No message has more of a URL than its host: the rest may be secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The URL cannot be fetched by anybody.
    #[error("the URL cannot be used: {reason}")]
    InvalidUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// A header cannot be sent.
    #[error("the header `{name}` {reason}")]
    InvalidHeader {
        /// Its name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration does not allow this host.
    #[error("the host `{host}` is not allowed; add it to `tools.http_request.allow`")]
    HostNotAllowed {
        /// Host and port.
        host: String,
    },
    /// The host is allowed by a pattern, its address is not public.
    #[error(transparent)]
    AddressRefused(#[from] AddressRefused),
    /// A redirect leads to a host that is not allowed.
    #[error("the response redirects to `{host}`, which is not allowed; add it to `tools.http_request.allow`")]
    RedirectNotAllowed {
        /// Host and port.
        host: String,
    },
    /// A redirect leads to no valid URL.
    #[error("the response redirects to something that is no URL")]
    InvalidRedirect,
    /// One redirect after the other.
    #[error("the response redirects more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    /// The host's certificate does not prove that it is the host.
    #[error("the certificate of `{host}` cannot be trusted: {reason}")]
    Certificate {
        /// The host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection came about, or it ended before the request was sent.
    #[error("no connection to `{host}` came about")]
    Connect {
        /// The host.
        host: String,
        /// Whether sending the request again is safe.
        repeatable: bool,
        /// The cause.
        source: reqwest::Error,
    },
    /// The connection broke before the response was complete.
    #[error("the connection to `{host}` broke before the response was complete")]
    Broken {
        /// The host.
        host: String,
        /// Whether sending the request again is safe.
        repeatable: bool,
        /// The cause.
        source: reqwest::Error,
    },
    /// The response was not complete in time.
    #[error("the response was not complete within {}", humantime::format_duration(*limit))]
    TimedOut {
        /// The time it had.
        limit: Duration,
        /// Whether sending the request again is safe.
        repeatable: bool,
    },
    /// The server gave up waiting for the request (408, RFC 9110 section 15.5.9), so nothing of it was done.
    #[error("`{host}` gave up waiting for the request (408)")]
    NotReceived {
        /// The host.
        host: String,
    },
    /// No client could be made, for example because the system has no root certificates.
    #[error("no HTTP client could be made; are root certificates (ca-certificates) installed?")]
    Setup {
        /// The cause.
        source: reqwest::Error,
    },
}

impl FetchError {
    /// Sorts what the HTTP client says. `repeatable`: the method allows a second try; `untouched`: this was the
    /// first hop, so that without a connection nothing was sent at all.
    pub(super) fn sending(host: &str, source: reqwest::Error, repeatable: bool, untouched: bool) -> Self {
        // The URL would tell its query to every log.
        let source = source.without_url();
        if let Some(refused) = cause::<AddressRefused>(&source) {
            return Self::AddressRefused(refused.clone());
        }
        let host = host.to_owned();
        if let Some(rustls::Error::InvalidCertificate(reason)) = cause::<rustls::Error>(&source) {
            return Self::Certificate { host, reason: reason.to_string() };
        }
        if unsent(&source) {
            return Self::Connect { host, repeatable: repeatable || untouched, source };
        }
        Self::Broken { host, repeatable, source }
    }

    /// What this error says about sending the same request again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect { repeatable: true, .. }
            | Self::Broken { repeatable: true, .. }
            | Self::TimedOut { repeatable: true, .. }
            | Self::NotReceived { .. } => Retry::After(None),
            Self::Connect { repeatable: false, .. }
            | Self::Broken { repeatable: false, .. }
            | Self::TimedOut { repeatable: false, .. }
            | Self::InvalidUrl { .. }
            | Self::InvalidHeader { .. }
            | Self::HostNotAllowed { .. }
            | Self::AddressRefused(_)
            | Self::RedirectNotAllowed { .. }
            | Self::InvalidRedirect
            | Self::TooManyRedirects
            | Self::Certificate { .. }
            | Self::Setup { .. } => Retry::Never,
        }
    }
}

/// What hyper says of a connection on which a server spoke before it was asked anything. It has no method to tell by, and in
/// other words it would be taken for a connection that broke, which is the careful reading.
const SPOKE_UNASKED: &str = "received unexpected message from connection";

/// Whether nothing of a request was sent: no connection came about, or the one that was to carry it ended before. Where
/// that is an old connection, hyper takes another one by itself; where it is a new one, this is seen: a server that has
/// waited for long gives that up too (408, then it closes), and a worker that stood still in between meets this.
pub(in crate::clients) fn unsent(error: &reqwest::Error) -> bool {
    let given_up = |cause: &hyper::Error| cause.is_canceled() || cause.to_string() == SPOKE_UNASKED;
    error.is_connect() || cause::<hyper::Error>(error).is_some_and(given_up)
}

/// The first cause of a type. An I/O error hides the one it wraps, so it is opened by hand.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The innermost cause, in its own words: "connection refused" says more than "error sending request".
fn root_cause(error: &reqwest::Error) -> String {
    let mut root: &dyn Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let mut message = error.to_string();
        if let FetchError::Connect { source, .. } | FetchError::Broken { source, .. } | FetchError::Setup { source } =
            &error
        {
            message = format!("{message}: {}", root_cause(source));
        }
        let unrepeatable = || format!("{message}; it is not sent again, because it may have taken effect");
        let again = error.retry() != Retry::Never;
        match &error {
            FetchError::InvalidUrl { .. } => Failure::validation("invalid_url", message),
            FetchError::InvalidHeader { .. } => Failure::validation("invalid_header", message),
            FetchError::HostNotAllowed { .. } => Failure::configuration("host_not_allowed", message),
            FetchError::AddressRefused(_) => Failure::configuration("address_refused", message),
            FetchError::RedirectNotAllowed { .. } => Failure::configuration("redirect_not_allowed", message),
            FetchError::InvalidRedirect => Failure::permanent("invalid_redirect", message),
            FetchError::TooManyRedirects => Failure::permanent("too_many_redirects", message),
            FetchError::Certificate { .. } => Failure::permanent("certificate_invalid", message),
            FetchError::Connect { .. } if again => Failure::retriable("http_connect", message),
            FetchError::Connect { .. } => Failure::permanent("http_connect", unrepeatable()),
            FetchError::Broken { .. } if again => Failure::retriable("http_broken", message),
            FetchError::Broken { .. } => Failure::permanent("http_broken", unrepeatable()),
            FetchError::TimedOut { .. } if again => Failure::retriable("http_timeout", message),
            FetchError::TimedOut { .. } => Failure::permanent("http_timeout", unrepeatable()),
            FetchError::NotReceived { .. } => Failure::retriable("http_not_received", message),
            FetchError::Setup { .. } => Failure::configuration("http_client", message),
        }
    }
}
