package xmpp

// Namespaces of XMPP's core and of the extensions that sessions speak.
const (
	NSClient   = "jabber:client"
	NSStream   = "http://etherx.jabber.org/streams"
	NSStreams  = "urn:ietf:params:xml:ns:xmpp-streams" // conditions of stream errors
	NSFraming  = "urn:ietf:params:xml:ns:xmpp-framing" // RFC 7395
	NSSASL     = "urn:ietf:params:xml:ns:xmpp-sasl"
	NSTLS      = "urn:ietf:params:xml:ns:xmpp-tls"
	NSBind     = "urn:ietf:params:xml:ns:xmpp-bind"
	NSSession  = "urn:ietf:params:xml:ns:xmpp-session"
	NSStanzas  = "urn:ietf:params:xml:ns:xmpp-stanzas" // conditions of stanza errors
	NSSM       = "urn:xmpp:sm:3"                       // XEP-0198
	NSPing     = "urn:xmpp:ping"                       // XEP-0199
	NSDisco    = "http://jabber.org/protocol/disco#info"
	NSItems    = "http://jabber.org/protocol/disco#items"
	NSExtDisco = "urn:xmpp:extdisco:2" // XEP-0215
	NSCaps     = "http://jabber.org/protocol/caps"
	NSDelay    = "urn:xmpp:delay"
	NSVersion  = "jabber:iq:version"
)
