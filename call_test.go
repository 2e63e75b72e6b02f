package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// The colours of the cameras, and what of them arrives after two conversions and a lossy codec.
var (
	red   = [3]int{220, 20, 20}
	green = [3]int{20, 160, 20}
	blue  = [3]int{20, 20, 220}
)

func css(c [3]int) string { return fmt.Sprintf("rgb(%d,%d,%d)", c[0], c[1], c[2]) }

const (
	joinLimit  = 10 * time.Second
	mediaLimit = 45 * time.Second // pictures on two shared cores beside other tests, or under the race detector
	soon       = 5 * time.Second
)

// TestTwoTabs is what make run promises: two tabs on one link have a call.
func TestTwoTabs(t *testing.T) {
	shard := startDev(t)
	b := newBrowser(t)
	room := shard.HTTP + "/two-tabs"
	ann := b.open(t, "ann", room, css(red))
	ann.until("plenum.id", joinLimit)
	bob := b.open(t, "bob", room, css(green))
	bob.until("plenum.id", joinLimit)
	ann.sees(bob, green, mediaLimit)
	bob.sees(ann, red, mediaLimit)
	ann.hears(mediaLimit)
	bob.hears(mediaLimit)
	var marks map[string]float64
	if err := bob.eval("plenum.marks", &marks); err != nil {
		t.Fatal(err)
	}
	t.Logf("connect → joined %.0f ms, connect → first remote picture %.0f ms", marks["joined"]-marks["connect"], marks["picture"]-marks["connect"])

	tile := fmt.Sprintf("plenum.tiles.get(%q).figure.classList", bob.id())
	bob.click("mic")
	ann.until(tile+".contains('silent')", soon)
	bob.click("mic")
	ann.until("!"+tile+".contains('silent')", soon)
	bob.click("camera")
	ann.until(tile+".contains('novideo')", soon)
	bob.click("camera")
	ann.until("!"+tile+".contains('novideo')", soon)
	ann.sees(bob, green, mediaLimit)

	// What the bridge wants of the camera may change twice in a moment.
	for _, lines := range []string{"0, 90, 0, -1", "0, -1, 0"} {
		if err := bob.eval(`[`+lines+`].forEach(maxHeight => plenum.media.hear(JSON.stringify({colibriClass: 'SenderSourceConstraints', maxHeight})))`, nil); err != nil {
			t.Fatal(err)
		}
		bob.until(fmt.Sprintf("plenum.media.camera.getParameters().encodings.every(e => e.active === %t)", strings.HasSuffix(lines, "-1")), soon)
	}

	bob.click("leave")
	ann.until("plenum.tiles.size === 0", soon)
	bob.stop()
	again := b.open(t, "bob again", room, css(blue))
	again.until("plenum.id", joinLimit)
	ann.sees(again, blue, mediaLimit)
	again.sees(ann, red, mediaLimit)
}

// TestThreeTabs shows everybody at the right place, and that a cut line mends itself without a word.
func TestThreeTabs(t *testing.T) {
	shard := startDev(t)
	b := newBrowser(t)
	g := newGate(t, strings.TrimPrefix(shard.HTTP, "http://"))
	colours := [][3]int{red, green, blue}
	var tabs []*tab
	for i, c := range colours {
		url := shard.HTTP
		if i == 0 {
			url = "http://" + g.listener.Addr().String()
		}
		p := b.open(t, []string{"ann", "bob", "cid"}[i], url+"/three-tabs", css(c))
		p.until("plenum.id", joinLimit)
		tabs = append(tabs, p)
	}
	everybody := func() {
		t.Helper()
		for i, p := range tabs {
			for j, q := range tabs {
				if i != j {
					p.sees(q, colours[j], mediaLimit)
				}
			}
		}
	}
	everybody()

	ann, bob := tabs[0], tabs[1]
	g.set(true)
	ann.until("document.getElementById('notice').textContent.includes('interrupted')", soon)
	bob.click("mic") // Ann must hear of it once she is back
	g.set(false)
	ann.until("document.getElementById('notice').hidden", mediaLimit)
	ann.until(fmt.Sprintf("plenum.tiles.get(%q).figure.classList.contains('silent')", bob.id()), soon)
	ann.click("mic") // and the others of what she does then
	bob.until(fmt.Sprintf("plenum.tiles.get(%q).figure.classList.contains('silent')", ann.id()), soon)
	everybody()
}

// TestTLS is for other machines of the network: HTTPS on every address, certificate and all.
func TestTLS(t *testing.T) {
	shard := startDev(t, func(o *devOptions) { o.tls, o.http, o.media = true, "0.0.0.0:0", outwardAddress()+":0" })
	if !strings.HasPrefix(shard.HTTP, "https://") {
		t.Fatalf("the link is %s", shard.HTTP)
	}
	b := newBrowser(t, chromedp.IgnoreCertErrors)
	ann := b.open(t, "ann", shard.HTTP+"/tls", css(red))
	bob := b.open(t, "bob", shard.HTTP+"/tls", css(green))
	ann.until("plenum.id", joinLimit)
	bob.until("plenum.id", joinLimit)
	ann.sees(bob, green, mediaLimit)
	bob.sees(ann, red, mediaLimit)
}

// TestTwoBridges has two rooms on two bridges, one of whose clients takes the WebSocket of its bridge.
func TestTwoBridges(t *testing.T) {
	shard := startDev(t, func(o *devOptions) { o.bridges = 2 })
	if len(shard.Bridges) != 2 || shard.Bridges[0] == shard.Bridges[1] {
		t.Fatalf("bridges: %+v", shard.Bridges)
	}
	for i := range 2 { // rooms go to whichever bridge has less to do
		all := joinAll(t, shard.HTTP, fmt.Sprint("two-bridges-", i), 4)
		for _, p := range all {
			await(t, p, mediaLimit, "everybody else plays", plays(3))
		}
	}
}
