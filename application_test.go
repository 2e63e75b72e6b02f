package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// TestEmbedded is what a page elsewhere does that embeds a room: it loads the iframe API from the shard, and
// that puts the web application into a frame. Application and API are stand-ins; how they find each other,
// the shard and a tenant is as in the real ones.
func TestEmbedded(t *testing.T) {
	shard := startDev(t, func(o *devOptions) {
		o.web = "signaling/site/testdata/build"
		o.configJS = object{"subject": "weekly", "p2p": map[string]any{"stunServers": []any{}}}
	})
	domain := strings.TrimPrefix(shard.HTTP, "http://")
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte(`<!doctype html><script src="` + shard.HTTP + `/external_api.js"></script><div id="meet"></div><script>
			const api = new JitsiMeetExternalAPI('` + domain + `', { roomName: 'school/standup', parentNode: document.getElementById('meet'), noSSL: true });
			api.addListener('videoConferenceJoined', e => window.joined = e);
		</script>`))
	}))
	defer elsewhere.Close()
	b := newBrowser(t)
	p := b.open(t, "page", elsewhere.URL, "red")
	p.until("window.joined", joinLimit)
	var got map[string]string
	if err := p.eval("joined", &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"room": "standup", "muc": "conference.school.localhost", "tenant": "school.", "app": "Stand-in", "title": "Stand-in",
		"note": "two folders down", "subject": "weekly", "margin": "0px",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

// TestConfigObject: the configuration file says what is laid over config.js as an object of its own.
func TestConfigObject(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plenum.hcl")
	text := `signaling {
		config_js = {
			subject        = "weekly"
			p2p            = { enabled = false, stunServers = [] }
			toolbarButtons = ["camera", "hangup"]
			lastN          = 1.5
		}
	}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() (got object) {
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags.Var(&got, "config-js", "")
		if err := configure(flags, file, []setting{{"config-js", "signaling", "config_js"}}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := object{
		"subject": "weekly", "p2p": map[string]any{"enabled": false, "stunServers": []any{}},
		"toolbarButtons": []any{"camera", "hangup"}, "lastN": 1.5,
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Error(diff)
	}
	t.Setenv("PLENUM_SIGNALING_CONFIG_JS", `{"subject":"daily"}`)
	if got := read(); !cmp.Equal(got, object{"subject": "daily"}) {
		t.Errorf("the environment wins over the file: %v", got)
	}
}
