package client

import (
	"crypto/sha1"
	"encoding/base64"
	"slices"
	"strings"
)

// capsNode is what current web clients call themselves.
const capsNode = "https://jitsi.org/jitsi-meet"

// features returns what a client of this configuration announces, sorted.
func (cfg *Config) features() []string {
	f := []string{
		"http://jabber.org/protocol/caps",
		"http://jitsi.org/json-encoded-sources",
		"http://jitsi.org/receive-multiple-video-streams",
		"http://jitsi.org/remb",
		"http://jitsi.org/source-name",
		"http://jitsi.org/start-muted-room-metadata",
		"http://jitsi.org/visitors-1",
		"urn:xmpp:jingle:1",
		"urn:xmpp:jingle:apps:dtls:0",
		"urn:xmpp:jingle:apps:rtp:1",
		"urn:xmpp:jingle:apps:rtp:audio",
		"urn:xmpp:jingle:apps:rtp:video",
		"urn:xmpp:jingle:transports:ice-udp:1",
		"urn:xmpp:rayo:client:1",
	}
	for feature, on := range map[string]bool{
		"http://jitsi.org/ssrc-rewriting-1":      cfg.Rewriting,
		"http://jitsi.org/tcc":                   !cfg.NoTransportCC,
		"urn:ietf:rfc:4588":                      !cfg.NoRTX,
		"urn:xmpp:jingle:transports:dtls-sctp:1": !cfg.WebSocketChannel,
	} {
		if on {
			f = append(f, feature)
		}
	}
	slices.Sort(f)
	return f
}

// capsHash is the verification string of features without identities (XEP-0115 section 5.1).
func capsHash(features []string) string {
	sum := sha1.Sum([]byte(strings.Join(features, "<") + "<"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
