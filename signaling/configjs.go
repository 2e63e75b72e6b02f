package signaling

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"

	"plenum/signaling/focus"
)

// configJS is what stock clients, and ours, read before anything else: plain data and nothing of the DOM,
// since the mobile apps evaluate it in a sandbox. base is the origin that the client used, with ws or wss
// in front, and tenant the first part of its path, if it has two.
func configJS(cfg *Config, n names, base, tenant string) []byte {
	path := ""
	if tenant != "" {
		path = "/" + tenant
	}
	deployment := map[string]any{}
	for k, v := range map[string]string{"shard": cfg.Shard, "region": cfg.Region} {
		if v != "" {
			deployment[k] = v
		}
	}
	c := map[string]any{
		"hosts":     map[string]any{"domain": cfg.Domain, "muc": n.tenant(tenant), "focus": n.focus},
		"websocket": base + path + "/xmpp-websocket",
		// Two people talk without a bridge. Servers for STUN come with room metadata; the client's default ones
		// are somebody else's.
		"p2p":              map[string]any{"enabled": true, "stunServers": []any{}},
		"enableIceRestart": true,
		"enableOpusRed":    true, // our bridges pass it to those who lose packets, and to nobody else

		"videoQuality": map[string]any{
			"codecPreferenceOrder":       offered(cfg, "AV1", "VP9", "VP8", "H264"),
			"mobileCodecPreferenceOrder": offered(cfg, "VP8", "VP9", "H264", "AV1"),
		},
		"flags":                     map[string]any{"ssrcRewritingEnabled": true},
		"hiddenDomain":              n.hidden,
		"bridgeChannel":             map[string]any{"preferSctp": true},
		"channelLastN":              -1,
		"openBridgeChannel":         true,
		"resolution":                720,
		"constraints":               map[string]any{"video": map[string]any{"height": map[string]any{"ideal": 720, "max": 720, "min": 180}}},
		"enableWelcomePage":         true,
		"prejoinConfig":             map[string]any{"enabled": true},
		"disableThirdPartyRequests": true, // no avatars, no analytics from elsewhere
		"analytics":                 map[string]any{"disabled": true},
		"deploymentInfo":            deployment,
	}
	merge(c, cfg.ConfigJS)
	b := new(bytes.Buffer)
	b.WriteString("var config = ")
	e := json.NewEncoder(b) // keys come sorted, and < is escaped
	e.SetIndent("", "  ")
	if err := e.Encode(c); err != nil {
		panic("signaling: config.js: " + err.Error()) // New has encoded it before
	}
	b.Truncate(b.Len() - 1)
	b.WriteString(";\n")
	return b.Bytes()
}

// offered are those of the client's preferred codecs that the focus offers. A client left to its own order
// asks its encoder for one that it was not offered, which fails.
func offered(cfg *Config, preferred ...string) []string {
	codecs := cfg.Focus.VideoCodecs
	if codecs == nil {
		codecs = focus.DefaultVideoCodecs
	}
	return slices.DeleteFunc(preferred, func(c string) bool { return !slices.Contains(codecs, c) })
}

// merge puts src over dst.
func merge(dst, src map[string]any) {
	for k, v := range src {
		below, ok := v.(map[string]any)
		old, had := dst[k].(map[string]any)
		if ok && had {
			old = maps.Clone(old)
			merge(old, below)
			v = old
		}
		dst[k] = v
	}
}
