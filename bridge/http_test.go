package bridge

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"plenum/wire/colibri"
)

// call makes one request to the private interface.
func call(t *testing.T, b *Bridge, method, path, body string) (status int, text string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+b.HTTPAddr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	all, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(all)
}

const jsonEndpoint = `{"id":"aaaa1111","create":true,"capabilities":["source-names","ssrc-rewriting"],"transport":{"ice-controlling":true,"sctp":{}},` +
	`"medias":[{"type":"audio","payload-types":[{"id":111,"name":"opus","clockrate":48000,"channels":2}],"rtp-hdrexts":[{"id":1,"uri":"urn:ietf:params:rtp-hdrext:ssrc-audio-level"}]}]}`

func TestConferencesOverHTTP(t *testing.T) {
	b := start(t, nil)
	status, text := call(t, b, "POST", "/colibri/v2/conferences", `{"meeting-id":"m1","name":"r@conference.meet.local","create":true,"endpoints":[`+jsonEndpoint+`]}`)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	var answer colibri.ConferenceModified
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	tr := answer.Endpoints[0].Transport
	if tr.ICE.Ufrag == "" || len(tr.ICE.WebSockets) != 1 || tr.SCTP.Port != 5000 || len(answer.Sources.Media) != 2 {
		t.Errorf("answer %s", text)
	}
	if !strings.Contains(text, `"web-sockets":["ws://`) {
		t.Errorf("web-sockets in %s", text)
	}
	for _, tc := range []struct {
		method, path, body string
		status             int
		contains           string
	}{
		{"POST", "/colibri/v2/conferences/", `{"meeting-id":"m1","create":true}`, 400, "conference_already_exists"},
		{"PATCH", "/colibri/v2/conferences/m1", `{"endpoints":[{"id":"aaaa1111","force-mute":{"audio":true}}]}`, 200, "aaaa1111"},
		{"PATCH", "/colibri/v2/conferences/m1", `{"endpoints":[{"id":"bbbb2222","transport":{}}]}`, 400, "unknown_endpoint"},
		{"PATCH", "/colibri/v2/conferences/mX", `{}`, 400, "conference_not_found"},
		{"PATCH", "/colibri/v2/conferences/m1", `{`, 400, ""},
		{"PATCH", "/colibri/v2/conferences/m1", `null`, 200, ""},
		{"POST", "/colibri/v2/conferences", ``, 400, ""},
		{"POST", "/colibri/v2/conferences", `[]`, 400, ""},
		{"POST", "/colibri/v2/conferences", `{"meeting-id":"` + strings.Repeat("x", maxBody) + `"}`, 413, ""},
		{"GET", "/colibri/v2/conferences", ``, 405, ""},
		{"PATCH", "/colibri/v2/conferences/m1", `{"expire":true}`, 200, ""},
		{"PATCH", "/colibri/v2/conferences/m1", `{"expire":true}`, 400, "Conference not found for ID: m1"},
	} {
		if status, text := call(t, b, tc.method, tc.path, tc.body); status != tc.status || !strings.Contains(text, tc.contains) {
			t.Errorf("%s %s %.60s: %d %s", tc.method, tc.path, tc.body, status, text)
		}
	}
}

func TestPrivateInterface(t *testing.T) {
	b := start(t, nil)
	url := join(t, b, "m1", "aaaa1111", "")
	secret := url[strings.Index(url, "pwd=")+4:]
	eventually(t, "a snapshot", func() bool {
		_, text := call(t, b, "GET", "/colibri/stats", "")
		return strings.Contains(text, `"local_endpoints":1,`)
	})
	for _, tc := range []struct {
		path     string
		contains []string
	}{
		{"/about/health", nil},
		{"/about/version", []string{`"version":"plenum-dev"`, `"os":"`}},
		{"/colibri/stats", []string{`"stress_level":`, `"drain":false`, `"healthy":true`, `"local_endpoints":1`, `"relay_id":"jvb1"`, `"region":"ber"`, `"version":"plenum-dev"`, `"total_conferences_created":1`}},
		{"/colibri/drain", []string{`{"drain":false}`}},
		{"/debug", []string{`"shutdown_state":"RUNNING"`, `"meeting_id":"m1"`, `"aaaa1111"`}},
		{"/debug/m1", []string{`"data_channel":false`, `"media":{`}},
		{"/metrics", []string{"jitsi_jvb_conferences 1", "jitsi_jvb_conferences_created_total 1", "plenum_bridge_colibri_requests_total 1", "jitsi_jvb_healthy 1", `jitsi_jvb_conferences_by_size_bucket{le="0"} 0`, `jitsi_jvb_conferences_by_size_bucket{le="1"} 1`}},
	} {
		status, text := call(t, b, "GET", tc.path, "")
		if status != http.StatusOK || strings.Contains(text, secret) {
			t.Errorf("%s: %d", tc.path, status)
		}
		for _, c := range tc.contains {
			if !strings.Contains(text, c) {
				t.Errorf("%s lacks %s: %s", tc.path, c, text)
			}
		}
	}
	var parsed map[string]any
	if _, text := call(t, b, "GET", "/colibri/stats", ""); json.Unmarshal([]byte(text), &parsed) != nil || len(parsed) < 60 {
		t.Errorf("stats %s", text)
	}
	call(t, b, "POST", "/colibri/drain/enable", "")
	if _, text := call(t, b, "GET", "/colibri/drain", ""); !strings.Contains(text, "true") {
		t.Errorf("drain %s", text)
	}
	call(t, b, "POST", "/colibri/drain/disable", "")
	if drain, _, _ := b.state.get(); drain {
		t.Error("still draining")
	}
	for _, body := range []string{"", "{}", `{"graceful-shutdown":"false"}`} {
		if status, _ := call(t, b, "POST", "/colibri/shutdown", body); status != http.StatusBadRequest {
			t.Errorf("shutdown %q: %d", body, status)
		}
	}
	if status, _ := call(t, b, "POST", "/colibri/shutdown", `{"graceful-shutdown":"true"}`); status != http.StatusOK {
		t.Errorf("shutdown: %d", status)
	}
	if _, text := call(t, b, "GET", "/debug", ""); !strings.Contains(text, "GRACEFUL_SHUTDOWN") {
		t.Errorf("debug %s", text)
	}
}

// TestMetricsLint holds names and help to Prometheus' rules, and a second bridge beside the first in one registry.
func TestMetricsLint(t *testing.T) {
	shared := prometheus.NewRegistry()
	for _, id := range []string{"one", "two"} {
		b := start(t, func(c *Config) {
			c.RelayID = id
			c.Metrics = prometheus.WrapRegistererWith(prometheus.Labels{"bridge": id}, shared)
		})
		for _, c := range b.media.cores { // the other bridge's leak check has to know them
			inCore(t, c, func() {})
		}
		eventually(t, "a snapshot", func() bool { return b.metrics.last().Sizes != nil })
	}
	families, err := shared.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "jitsi_") { // those are as Jitsi names them
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestHealthNotices(t *testing.T) {
	b := start(t, nil)
	healthy := func() bool { return b.metrics.health() == nil }
	eventually(t, "asked", func() bool {
		b.metrics.mu.Lock()
		defer b.metrics.mu.Unlock()
		return !b.metrics.asked.IsZero()
	})
	eventually(t, "healthy", healthy)
	hold, held := make(chan struct{}), make(chan struct{})
	b.media.cores[0].do(func(time.Time) { close(held); <-hold })
	<-held
	b.metrics.beat(time.Now().Add(time.Minute))
	if healthy() {
		t.Error("a core that is a minute behind goes unnoticed")
	}
	if status, _ := call(t, b, "GET", "/about/health", ""); status != http.StatusInternalServerError {
		t.Errorf("health: %d", status)
	}
	close(hold)
	eventually(t, "healthy again", healthy)
}

func TestParseStat(t *testing.T) {
	for text, want := range map[string]bool{
		"cpu  100 0 50 800 50 0 0 10 0 0\ncpu0 1": true, "": false, "cpu 1 2": false, "cpu a b c d e f g h": false, "intr 1 2 3 4 5 6 7 8": false,
	} {
		total, idle, steal, ok := parseStat([]byte(text))
		if ok != want || ok && (total != 1010 || idle != 850 || steal != 10) {
			t.Errorf("%q: %d %d %d %v", text, total, idle, steal, ok)
		}
	}
}

func FuzzPrivateJSON(f *testing.F) {
	f.Add([]byte(`{"endpoints":[]}`), "m1")
	f.Add([]byte(`null`), "")
	f.Add([]byte(`{"meeting-id":{"a":[1,2,{}]}}`), "x\x00")
	f.Fuzz(func(t *testing.T, body []byte, id string) {
		b, err := withMeeting(body, id)
		if err != nil {
			return
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(b, &m); err != nil || m["meeting-id"] == nil {
			t.Errorf("%q became %q", body, b)
		}
	})
}
