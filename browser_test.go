package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

// A browser is one headless Chromium whose pages have a camera of one colour and a microphone with a tone.
type browser struct{ ctx context.Context }

func newBrowser(t *testing.T, more ...chromedp.ExecAllocatorOption) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("these tests need a real browser: apt-get install chromium, or run make test, which does it")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("use-fake-ui-for-media-stream", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true))
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), append(options, more...)...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("chromium: %v", err)
	}
	return &browser{ctx}
}

// A tab is one participant in the built-in client.
type tab struct {
	t    *testing.T
	name string
	run  func(ctx context.Context, script string) (text string, err error) // evaluates to a promise of a text
	stop func()
}

// camera replaces the devices of a page: a picture of one colour at 15 frames a second, and a tone.
const camera = `navigator.mediaDevices.getUserMedia = async wish => {
	const stream = new MediaStream();
	if (wish.video) {
		const canvas = Object.assign(document.createElement('canvas'), { width: 640, height: 360 });
		const brush = canvas.getContext('2d');
		let n = 0;
		setInterval(() => { brush.fillStyle = %q; brush.fillRect(0, 0, 640, 360); brush.fillStyle = '#888'; brush.fillRect(n++ %% 600, 350, 10, 10); }, 66);
		stream.addTrack(canvas.captureStream(15).getVideoTracks()[0]);
	}
	if (wish.audio) {
		const audio = new AudioContext(), tone = audio.createOscillator(), out = audio.createMediaStreamDestination();
		tone.connect(out);
		tone.start();
		stream.addTrack(out.stream.getAudioTracks()[0]);
	}
	return stream;
};`

// open joins the room at url with a camera of that CSS colour.
func (b *browser) open(t *testing.T, name, url, colour string) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(b.ctx)
	t.Cleanup(stop)
	_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: fmt.Sprintf(camera, colour)})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	run := func(limit context.Context, script string) (string, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer context.AfterFunc(limit, cancel)()
		defer cancel()
		return chromedp.Run(ctx, chromedp.Evaluate[string](script, chromedp.EvalAwaitPromise))
	}
	return &tab{t, name, run, stop}
}

// eval evaluates an expression, which may be a promise, into out.
func (p *tab) eval(expression string, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	text, err := p.run(ctx, `(async () => JSON.stringify(await (`+expression+`) ?? null))()`)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", p.name, expression, err)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal([]byte(text), out)
}

// until waits for an expression to become true.
func (p *tab) until(expression string, limit time.Duration) {
	p.t.Helper()
	var last string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var ok bool
		if err := p.eval("(async () => !!(await ("+expression+")))()", &ok); err != nil {
			last = err.Error()
		} else if ok {
			return
		}
	}
	var state any
	_ = p.eval(`(async () => ({notice: document.getElementById('notice').textContent,
		tiles: [...document.querySelectorAll('.tile')].map(t => t.className + ' ' + t.dataset.endpoint + ' ' + t.textContent),
		rtp: [...(await plenum.media?.stats() ?? new Map()).values()].filter(s => s.type.endsWith('bound-rtp'))
			.map(s => [s.type, s.kind, s.ssrc, s.packetsSent ?? s.packetsReceived, s.framesEncoded ?? s.framesDecoded, s.keyFramesDecoded, s.pliCount].join(' '))}))()`, &state)
	p.t.Fatalf("%s: not within %s: %s\nlast error: %s\npage: %v", p.name, limit, expression, last, state)
}

// id is the participant's endpoint id.
func (p *tab) id() string {
	p.t.Helper()
	var id string
	if err := p.eval("plenum.id", &id); err != nil {
		p.t.Fatal(err)
	}
	return id
}

// sees waits until the tile of another participant shows a picture of that colour.
func (p *tab) sees(other *tab, colour [3]int, limit time.Duration) {
	p.t.Helper()
	p.until(fmt.Sprintf(`(() => {
		const video = plenum.tiles.get(%q)?.video;
		if (!video?.videoWidth) return false;
		const canvas = Object.assign(document.createElement('canvas'), { width: 8, height: 8 });
		const brush = canvas.getContext('2d');
		brush.drawImage(video, 0, 0, 8, 8);
		const [r, g, b] = brush.getImageData(4, 2, 1, 1).data;
		return Math.abs(r - %d) < 60 && Math.abs(g - %d) < 60 && Math.abs(b - %d) < 60;
	})()`, other.id(), colour[0], colour[1], colour[2]), limit)
}

// hears waits until sound from the other participant comes.
func (p *tab) hears(limit time.Duration) {
	p.t.Helper()
	p.until(`(async () => [...(await plenum.media.stats()).values()].some(s => s.type === 'inbound-rtp' && s.kind === 'audio' && s.totalAudioEnergy > 0))()`, limit)
}

// click presses a button of the page.
func (p *tab) click(id string) {
	p.t.Helper()
	if err := p.eval(fmt.Sprintf("document.getElementById(%q).click()", id), nil); err != nil {
		p.t.Fatal(err)
	}
}
