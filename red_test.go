package main

import "testing"

// TestRedundantAudio has two Chromium tabs send audio twice, which the bridge makes plain for those who lose nothing: they
// hear each other, and get half of the bytes that they send.
func TestRedundantAudio(t *testing.T) {
	shard := startDev(t)
	b := newBrowser(t)
	ann := b.open(t, "ann", shard.HTTP+"/red", css(red))
	ann.until("plenum.id", joinLimit)
	bob := b.open(t, "bob", shard.HTTP+"/red", css(blue))
	bob.until("plenum.id", joinLimit)
	ann.hears(mediaLimit)
	bob.hears(mediaLimit)
	for _, p := range []*tab{ann, bob} {
		p.until(`(async () => {
			const stats = [...(await plenum.media.stats()).values()];
			const bytes = (type, n, of) => { const s = stats.find(s => s.type === type && s.kind === 'audio' && s[of] >= 50); return s ? s[n] / s[of] : NaN; };
			return bytes('outbound-rtp', 'bytesSent', 'packetsSent') > 1.5 * bytes('inbound-rtp', 'bytesReceived', 'packetsReceived');
		})()`, mediaLimit)
	}
}
