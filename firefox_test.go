package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A firefox is one headless Firefox, driven by WebDriver BiDi over its WebSocket.
type firefox struct {
	socket *websocket.Conn
	mu     sync.Mutex
	last   int
	wait   map[int]chan biDiAnswer
	end    error // why there are no more answers
}

type biDiAnswer struct {
	ID      int
	Error   string
	Message string
	Result  json.RawMessage
}

// firefoxPreferences let pages play and record without asking, and keep Firefox from talking to anybody else.
const firefoxPreferences = `
user_pref("media.autoplay.default", 0);
user_pref("media.autoplay.blocking_policy", 0);
user_pref("media.navigator.permission.disabled", true);
user_pref("media.navigator.streams.fake", true);
user_pref("media.gmp-manager.updateEnabled", false);
user_pref("app.update.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("toolkit.telemetry.server", "");
user_pref("services.settings.server", "data:,");
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.safebrowsing.provider.mozilla.updateURL", "");
user_pref("extensions.update.enabled", false);
`

func newFirefox(t *testing.T) *firefox {
	t.Helper()
	path, err := exec.LookPath("firefox-esr")
	if err != nil {
		t.Fatal("this test needs Firefox: apt-get install firefox-esr, or run make test, which does it")
	}
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "user.js"), []byte(firefoxPreferences), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, "--headless", "--no-remote", "--profile", home, "--remote-debugging-port", "0")
	c.Env = append(os.Environ(), "HOME="+home, "MOZ_CRASHREPORTER_DISABLE=1")
	said, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if _, a, ok := strings.Cut(lines.Text(), "WebDriver BiDi listening on "); ok {
				address <- a
			}
		}
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-read
		_ = c.Wait()
	})
	f := &firefox{wait: map[int]chan biDiAnswer{}}
	select {
	case a := <-address:
		if f.socket, _, err = websocket.DefaultDialer.Dial(a+"/session", nil); err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("firefox does not start")
	}
	done := make(chan struct{})
	go func() { defer close(done); f.read() }()
	t.Cleanup(func() { f.socket.Close(); <-done })
	f.must(t, "session.new", `{"capabilities":{}}`, nil)
	return f
}

// read hands answers to who waits for them, until the socket closes.
func (f *firefox) read() {
	for {
		var a biDiAnswer
		err := f.socket.ReadJSON(&a)
		f.mu.Lock()
		if err != nil {
			f.end = err
			for _, c := range f.wait {
				close(c)
			}
			f.wait = nil
			f.mu.Unlock()
			return
		}
		if c := f.wait[a.ID]; c != nil {
			delete(f.wait, a.ID)
			c <- a
		}
		f.mu.Unlock()
	}
}

// call sends a command and decodes its result into out.
func (f *firefox) call(ctx context.Context, method string, parameters json.RawMessage, out any) error {
	answer := make(chan biDiAnswer, 1)
	f.mu.Lock()
	err := f.end
	if err == nil {
		f.last++
		f.wait[f.last] = answer
		err = f.socket.WriteJSON(map[string]any{"id": f.last, "method": method, "params": parameters})
	}
	f.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("%s: firefox is gone", method)
		case a.Error != "":
			return fmt.Errorf("%s: %s: %s", method, a.Error, a.Message)
		case out == nil:
			return nil
		}
		return json.Unmarshal(a.Result, out)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

func (f *firefox) must(t *testing.T, method, parameters string, out any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := f.call(ctx, method, json.RawMessage(parameters), out); err != nil {
		t.Fatal(err)
	}
}

// open joins the room at url with a camera of that CSS colour.
func (f *firefox) open(t *testing.T, name, url, colour string) *tab {
	t.Helper()
	var page struct{ Context string }
	f.must(t, "browsingContext.create", `{"type":"tab"}`, &page)
	script := fmt.Sprintf("() => {"+microphone+"}", fmt.Sprintf(camera, colour))
	f.must(t, "script.addPreloadScript", fmt.Sprintf(`{"functionDeclaration":%s,"contexts":[%q]}`, quote(script), page.Context), nil)
	f.must(t, "browsingContext.navigate", fmt.Sprintf(`{"context":%q,"url":%q,"wait":"interactive"}`, page.Context, url), nil)
	run := func(ctx context.Context, script string) (string, error) {
		var r struct {
			Result           struct{ Value string }
			ExceptionDetails struct{ Text string }
		}
		p := fmt.Sprintf(`{"expression":%s,"target":{"context":%q},"awaitPromise":true}`, quote(script), page.Context)
		if err := f.call(ctx, "script.evaluate", json.RawMessage(p), &r); err != nil {
			return "", err
		}
		if why := r.ExceptionDetails.Text; why != "" {
			return "", errors.New(why)
		}
		return r.Result.Value, nil
	}
	stop := func() { f.must(t, "browsingContext.close", fmt.Sprintf(`{"context":%q}`, page.Context), nil) }
	return &tab{t, name, run, stop}
}

// microphone has Firefox's own tone replace that of the camera: it makes no sounds where there is no sound card.
const microphone = `const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
%s
const picture = navigator.mediaDevices.getUserMedia;
navigator.mediaDevices.getUserMedia = async wish => new MediaStream([
	...(await picture({ video: wish.video })).getTracks(), ...(wish.audio ? (await own({ audio: true })).getTracks() : [])]);`

// quote is s as a JSON text.
func quote(s string) string {
	text, _ := json.Marshal(s) // never fails on a string
	return string(text)
}
