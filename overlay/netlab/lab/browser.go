//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/chromedp/chromedp"
)

// errNoBrowser is returned where Chromium is not installed.
var errNoBrowser = errors.New("chromium is not installed")

// A page is somebody in a room with the built-in client, in a headless Chromium.
type page struct {
	ctx    context.Context
	region string
}

// browse starts a Chromium that finds each region's edge by its name and a door, and believes their authority alone.
// It ends with end.
func (c *cluster) browse(edges []*member) (browser context.Context, end func(), err error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, nil, errNoBrowser
	}
	var rules []string
	for _, m := range edges {
		door, err := m.door(netip.AddrPortFrom(m.Addr(), 443))
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, fmt.Sprintf("MAP %s:443 %s", m.names()[1], door))
	}
	alloc, kill := chromedp.NewExecAllocator(c.ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(filepath.Join(c.dir, "chromium")),
		chromedp.Flag("host-resolver-rules", strings.Join(rules, ", ")), chromedp.Flag("ignore-certificate-errors-spki-list", c.ca.key),
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"), chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("use-fake-device-for-media-stream", true), chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true))...)
	browser, leave := chromedp.NewContext(alloc)
	end = func() { leave(); kill() }
	if err := chromedp.Do(browser); err != nil {
		end()
		return nil, nil, fmt.Errorf("chromium: %w", err)
	}
	return browser, end, nil
}

// open has somebody join the room at url, which is by way of a region's edge.
func open(browser context.Context, region, url string) (*page, error) {
	ctx, _ := chromedp.NewContext(browser) // ends with the browser
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		return nil, fmt.Errorf("a page by %s: %w", url, err)
	}
	return &page{ctx: ctx, region: region}, nil
}

// media is what a page gets from others, in all, and how it reaches its edge.
type media struct {
	Pictures, Sounds int
	Energy           float64 // of the sound
	Protocol, Socket string
}

const tellMedia = `(async () => {
	const all = [...(await plenum.media?.stats() ?? new Map()).values()].filter(s => s.type === 'inbound-rtp');
	const sum = (kind, field) => all.filter(s => s.kind === kind).reduce((n, s) => n + (s[field] ?? 0), 0);
	return JSON.stringify({Pictures: sum('video', 'framesDecoded'), Sounds: sum('audio', 'packetsReceived'), Energy: sum('audio', 'totalAudioEnergy'),
		Protocol: performance.getEntriesByType('navigation')[0].nextHopProtocol, Socket: config.websocket});
})()`

// gets asks the page.
func (p *page) gets() (m media, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](tellMedia, chromedp.EvalAwaitPromise))
	if err == nil {
		err = json.Unmarshal([]byte(text), &m)
	}
	return m, err
}

// flows says what is missing: pictures and sound, both from the other side.
func (p *page) flows() error {
	m, err := p.gets()
	if err == nil && (m.Pictures < 10 || m.Sounds < 50 || m.Energy == 0) {
		err = fmt.Errorf("%+v", m)
	}
	if err != nil {
		return fmt.Errorf("the page in %s: %w", p.region, err)
	}
	return nil
}
