package main

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

// prefers puts a codec first in config.js.
func prefers(codec string) func(*devOptions) {
	return func(o *devOptions) {
		o.configJS = object{"videoQuality": map[string]any{"codecPreferenceOrder": []any{codec, "VP8"}}}
	}
}

// uses waits until the camera is sent in that codec, and another one shown.
func (p *tab) uses(codec string) {
	p.t.Helper()
	p.until(fmt.Sprintf(`(async () => {
		const stats = [...(await plenum.media.stats()).values()];
		const used = (type, frames) => stats.some(s => s.type === type && s.kind === 'video' && s[frames] >= 30
			&& stats.find(c => c.id === s.codecId).mimeType.toLowerCase() === 'video/%s');
		return used('outbound-rtp', 'framesEncoded') && used('inbound-rtp', 'framesDecoded');
	})()`, codec), mediaLimit)
}

// traced logs what the bridge knows of a room when a test has failed.
func traced(t *testing.T, url string) {
	if !t.Failed() {
		return
	}
	res, err := http.Get(url)
	if err != nil {
		t.Log(err)
		return
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	t.Logf("%s: %s", url, text)
}

// TestCodecs has two Chromium tabs call each other in every codec that the bridge forwards.
func TestCodecs(t *testing.T) {
	b := newBrowser(t)
	for _, codec := range []string{"vp8", "vp9", "av1", "h264"} {
		t.Run(codec, func(t *testing.T) {
			dev := startDev(t, prefers(codec))
			room := dev.HTTP + "/codec"
			ann := b.open(t, "ann", room, css(red))
			ann.until("plenum.id", joinLimit)
			bob := b.open(t, "bob", room, css(blue))
			t.Cleanup(func() { traced(t, dev.Metrics+"/debug/rooms/codec") }) // while both are there
			bob.until("plenum.id", joinLimit)
			ann.sees(bob, blue, mediaLimit)
			bob.sees(ann, red, mediaLimit)
			ann.uses(codec)
			bob.uses(codec)
		})
	}
}

// TestFirefox has Chromium and Firefox call each other. Firefox has H264 only where it could load that part, and
// AV1 only in newer versions: then everybody takes VP8, who was there before by changing codecs in mid-call.
// It takes no candidates on the loopback.
func TestFirefox(t *testing.T) {
	outward := func(o *devOptions) { o.media = outwardAddress() + ":0" }
	f, b := newFirefox(t), newBrowser(t)
	for _, codec := range []string{"vp8", "vp9", "av1", "h264"} {
		t.Run(codec, func(t *testing.T) {
			room := startDev(t, prefers(codec), outward).HTTP + "/firefox"
			ann := b.open(t, "ann", room, css(red))
			defer ann.stop()
			ann.until("plenum.id", joinLimit)
			bob := f.open(t, "bob", room, css(blue))
			defer bob.stop()
			bob.until("plenum.id", joinLimit)
			ann.sees(bob, blue, mediaLimit)
			bob.sees(ann, red, mediaLimit)
			ann.hears(mediaLimit)
			bob.hears(mediaLimit)
			var has bool
			if err := bob.eval(fmt.Sprintf("RTCRtpSender.getCapabilities('video').codecs.some(c => c.mimeType.toLowerCase() === 'video/%s')", codec), &has); err != nil {
				t.Fatal(err)
			}
			if !has {
				codec = "vp8"
			}
			ann.uses(codec)
			bob.uses(codec)
		})
	}
}
