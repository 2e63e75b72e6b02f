package focus

import (
	"crypto/sha1"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"plenum/wire/xmpp"
)

// Limits on a disco#info answer.
const (
	maxFeatures     = 256
	maxFeatureBytes = 256
)

// features is what a client can do, as far as an offer depends on it. They are
// only in its disco#info, not in presence.
type features struct {
	audio, video, sctp, rtx, tcc, remb, red, rewriting, mid bool
}

// assumed is what a client that does not answer is taken for.
var assumed = features{audio: true, video: true, sctp: true}

func readFeatures(list []string) features {
	has := func(f string) bool { return slices.Contains(list, f) }
	return features{
		audio:     has("urn:xmpp:jingle:apps:rtp:audio"),
		video:     has("urn:xmpp:jingle:apps:rtp:video"),
		sctp:      has("urn:xmpp:jingle:transports:dtls-sctp:1"),
		rtx:       has("urn:ietf:rfc:4588"),
		tcc:       has("http://jitsi.org/tcc"),
		remb:      has("http://jitsi.org/remb"),
		red:       has("http://jitsi.org/opus-red"),
		rewriting: has("http://jitsi.org/ssrc-rewriting-1"),
		mid:       has("http://jitsi.org/rtp-mid-demux"),
	}
}

// learnFeatures looks the client's version up or asks the client. The question goes out when the
// client joins, so that an invitation rarely waits for it.
func (c *Conference) learnFeatures(now time.Time, p *participant) {
	var node, ver string
	for _, e := range p.Presence {
		if e.Is(xmpp.NSCaps, "c") && e.Attr("hash") == "sha-1" {
			node, ver = e.Attr("node"), e.Attr("ver")
		}
	}
	if c.cfg.Caps != nil && ver != "" {
		if list, ok := c.cfg.Caps.Features(ver); ok {
			c.setFeatures(p, readFeatures(list))
			return
		}
	}
	query := xmpp.New(xmpp.NSDisco, "query")
	if ver != "" {
		query.SetAttr("node", node+"#"+ver)
	}
	c.ask(p, "get", query, func(_ time.Time, iq *xmpp.Element) {
		list, ok := parseFeatures(iq)
		if ok && c.cfg.Caps != nil && ver == capsHash(list) {
			c.cfg.Caps.Remember(ver, list)
		}
		switch {
		case p.features != nil: // too late
		case ok:
			c.cancelTimer(timerFeatures + p.Nick)
			c.setFeatures(p, readFeatures(list))
		default:
			c.cancelTimer(timerFeatures + p.Nick)
			c.setFeatures(p, assumed)
		}
	})
	c.setTimer(now, timerFeatures+p.Nick, c.cfg.CapsTimeout)
}

func (c *Conference) assumeFeatures(nick string) {
	if p := c.participant(nick); p != nil && p.features == nil {
		c.setFeatures(p, assumed)
	}
}

func (c *Conference) setFeatures(p *participant, f features) {
	if c.cfg.NoRewriting {
		f.rewriting = false
	}
	f.mid = f.mid && f.rewriting && !c.cfg.NoMID
	f.red = f.red && !c.cfg.NoRED
	p.features = &f
}

func parseFeatures(iq *xmpp.Element) ([]string, bool) {
	if iq == nil || iq.Attr("type") != "result" {
		return nil, false
	}
	query := iq.Child(xmpp.NSDisco, "query")
	if query == nil {
		return nil, false
	}
	var list []string
	for f := range query.Children {
		if f.Name != "feature" {
			continue
		}
		if len(list) == maxFeatures || len(f.Attr("var")) > maxFeatureBytes {
			return nil, false
		}
		list = append(list, f.Attr("var"))
	}
	return list, true
}

// capsHash is the verification string of a client without identities (XEP-0115, 5.1), which is what
// Jitsi's clients are. Only features that hash to their ver are believed of other clients.
func capsHash(list []string) string {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	h := sha1.Sum([]byte(strings.Join(sorted, "<") + "<"))
	return base64.StdEncoding.EncodeToString(h[:])
}
