package signaling

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"plenum/signaling/focus"
)

func TestLocate(t *testing.T) {
	for _, tt := range []struct {
		path         string
		want         place
		tenant, name string
	}{
		{"/", page, "", ""}, {"/standup", page, "", "standup"}, {"/Ada's room", page, "", "Ada's room"}, {"/standup/", page, "", "standup"},
		{"/school/standup", page, "school", "standup"}, {"/School/standup/", page, "school", "standup"}, {"/school/close.html", page, "school", "close.html"},
		{"/a/b/c", nowhere, "", ""}, {"/a b/c", nowhere, "", ""}, {"//x", nowhere, "", ""}, {"/a/b/config.js", nowhere, "", ""},
		{"/config.js", configFile, "", "config.js"}, {"/school/config.js", configFile, "school", "config.js"},
		{"/xmpp-websocket", socket, "", "xmpp-websocket"}, {"/school/xmpp-websocket", socket, "school", "xmpp-websocket"},
		{"/xmpp-websocket/x", nowhere, "", ""}, {"/config.js/x", nowhere, "", ""},
		{"/conference-request/v1", conferenceRequest, "", "conference-request/v1"},
		{"/school/conference-request/v1", conferenceRequest, "school", "conference-request/v1"},
		{"/conference-request", file, "", "conference-request"}, {"/conference-request/v2", nowhere, "", ""},
		{"/about/health", health, "", "about/health"}, {"/about/version", nowhere, "", ""}, {"/school/about/health", nowhere, "", ""},
		{"/static/main.js", file, "", "static/main.js"}, {"/school/static/main.js", file, "school", "static/main.js"},
		{"/libs/a/b/c.js", file, "", "libs/a/b/c.js"}, {"/school/lang/main.json", file, "school", "lang/main.json"},
		{"/libs/../x", file, "", "libs/../x"}, {"/libs", file, "", "libs"}, {"/.well-known/x", file, "", ".well-known/x"},
		{"/colibri-ws/dev-1/c/e", bridgeChannel, "", "colibri-ws/dev-1/c/e"}, {"/school/colibri-ws/x", nowhere, "", ""},
		{"/metrics", file, "", "metrics"}, {"/debug", file, "", "debug"}, {"/debug/rooms/x", nowhere, "", ""}, {"/robots.txt", file, "", "robots.txt"},
		{"/external_api.js", file, "", "external_api.js"}, {"/school/favicon.ico", file, "school", "favicon.ico"},
	} {
		if got, tenant, name := locate(tt.path); got != tt.want || tenant != tt.tenant || name != tt.name {
			t.Errorf("locate(%q) = %v, %q, %q, want %v, %q, %q", tt.path, got, tenant, name, tt.want, tt.tenant, tt.name)
		}
	}
}

func FuzzLocate(f *testing.F) {
	f.Add("/school/conference-request/v1")
	f.Add("//////")
	f.Fuzz(func(t *testing.T, path string) {
		p, tenant, name := locate(path)
		if tenant != "" && !tenantName(tenant) || p == nowhere && (tenant != "" || name != "") {
			t.Errorf("%q: %v, tenant %q, name %q", path, p, tenant, name)
		}
	})
}

// TestApplication: a stock web application takes the place of the built-in page, for tenants too.
func TestApplication(t *testing.T) {
	s := testServer(t, func(c *Config) {
		c.Site = "site/testdata/build"
		c.ConfigJS = map[string]any{"subject": "</script>"}
	})
	defer s.Close()
	for _, tt := range []struct {
		url  string
		code int
		want []string // are in the answer
	}{
		{"/", 200, []string{`"websocket": "ws://meet.example:8000/xmpp-websocket"`, `APP_NAME`, `data-tenant=""`, `\u003c/script`}},
		{"/Stand Up 1.5", 200, []string{`"websocket": "ws://meet.example:8000/xmpp-websocket"`}},
		{"/school/standup", 200, []string{`"websocket": "ws://meet.example:8000/school/xmpp-websocket"`, `conference.school.localhost`, `data-tenant="school."`}},
		{"/index.html", 200, []string{`id="react"`}}, {"/school/index.html", 200, []string{`data-tenant="school."`}},
		{"/external_api.js", 200, []string{"JitsiMeetExternalAPI"}}, {"/school/external_api.js", 200, []string{"JitsiMeetExternalAPI"}},
		{"/libs/external_api.min.js?v=3", 200, []string{"JitsiMeetExternalAPI"}},
		{"/school/libs/app.bundle.min.js", 200, []string{"WebSocket"}}, {"/school/lang/main.json", 200, []string{"Stand-in"}},
		{"/interface_config.js", 200, []string{"interfaceConfig"}}, {"/manifest.json", 200, []string{"Stand-in"}},
		{"/static/close.html", 200, []string{"Closed"}}, {"/title.html", 200, []string{"<title>"}},
		{"/config.js", 200, []string{"var config = {"}}, {"/school/config.js", 200, []string{"/school/xmpp-websocket"}},
		{"/libs", 404, nil}, {"/libs/", 404, nil}, {"/libs/none.js", 404, nil}, {"/static/../../site_test.go", 404, nil}, {"/favicon.ico", 404, nil},
		{"/metrics", 404, nil}, {"/a/b/c", 404, nil}, {"/school/standup/", 301, nil},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = "meet.example:8000"
		r.URL.Path, r.URL.RawQuery, _ = strings.Cut(tt.url, "?")
		w := httptest.NewRecorder()
		s.front(w, r)
		if w.Code != tt.code {
			t.Errorf("%s: %d, want %d", tt.url, w.Code, tt.code)
		}
		for _, want := range tt.want {
			if !strings.Contains(w.Body.String(), want) {
				t.Errorf("%s lacks %s:\n%s", tt.url, want, w.Body)
			}
		}
	}
}

func testServer(t *testing.T, change ...func(*Config)) *Server {
	t.Helper()
	cfg := Config{HTTP: "127.0.0.1:0", XMPP: "127.0.0.1:0", Shard: "muc-1", Region: "muc", Release: "7", Accounts: []string{"jvb:secret"},
		Web: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("page " + r.URL.Path)) })}
	for _, f := range change {
		f(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFront(t *testing.T) {
	s := testServer(t, func(c *Config) {
		c.BridgeChannel = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("channel")) })
	})
	defer s.Close()
	for _, tt := range []struct {
		method, url, body string
		code              int
		want              string // begins the answer
		header            string // name: value
	}{
		{"GET", "/standup", "", 200, "page /standup", "X-Content-Type-Options: nosniff"},
		{"GET", "/", "", 200, "page /", ""},
		{"GET", "/tenant/standup/", "", 301, "", "Location: /tenant/standup"},
		{"POST", "/standup", "", 405, "", "Allow: GET, HEAD"},
		{"GET", "/metrics", "", 404, "", ""},
		{"GET", "/about/health", "", 200, "OK", "X-Jitsi-Shard: "},
		{"GET", "/colibri-ws/dev-1/x/y?pwd=z", "", 200, "channel", ""},
		{"GET", "/xmpp-websocket?room=standup", "", 200, "", "X-Jitsi-Shard: muc-1"},
		{"GET", "/xmpp-websocket?room=standup", "", 200, "", "Access-Control-Allow-Origin: *"},
		{"GET", "/xmpp-websocket?room=standup", "", 200, "", "Access-Control-Expose-Headers: X-Jitsi-Shard"},
		{"GET", "/xmpp-websocket", "", 200, "", "X-Jitsi-Shard: "},
		{"POST", "/xmpp-websocket", "", 405, "", ""},
		{"GET", "/config.js", "", 200, "var config = {", "Content-Type: application/javascript; charset=utf-8"},
		{"OPTIONS", "/conference-request/v1?room=x", "", 200, "", "Access-Control-Allow-Headers: Authorization, Content-Type"},
		{"GET", "/conference-request/v1", "", 405, "", "Allow: POST, OPTIONS"},
		{"POST", "/conference-request/v1", "{", 400, "Bad request: ", "Access-Control-Allow-Origin: *"},
		{"POST", "/conference-request/v1", "{}", 400, "Bad request: bad-request: No 'room' specified.", ""},
		{"POST", "/conference-request/v1", `{"room":"x@elsewhere"}`, 400, "Bad request: ", ""},
		{"POST", "/conference-request/v1", `{"room":"config.js@conference.localhost"}`, 400, "Bad request: ", ""},
		{"POST", "/conference-request/v1", `{"room":"` + strings.Repeat("x", 20000) + `"}`, 413, "Bad request: ", ""},
	} {
		r := httptest.NewRequest(tt.method, "http://meet.example:8000"+tt.url, strings.NewReader(tt.body))
		w := httptest.NewRecorder()
		s.front(w, r)
		if w.Code != tt.code || !strings.HasPrefix(w.Body.String(), tt.want) {
			t.Errorf("%s %s: %d %q, want %d %q", tt.method, tt.url, w.Code, w.Body, tt.code, tt.want)
		}
		if name, value, ok := strings.Cut(tt.header, ": "); ok && w.Header().Get(name) != value {
			t.Errorf("%s %s: %s is %q, want %q", tt.method, tt.url, name, w.Header().Get(name), value)
		}
	}
}

func TestConfigJS(t *testing.T) {
	s := testServer(t, func(c *Config) {
		c.Edges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		c.ConfigJS = map[string]any{"p2p": map[string]any{"backToP2PDelay": 9}, "subject": "</script>"}
	})
	defer s.Close()
	get := func(url string, change func(*http.Request)) map[string]any {
		t.Helper()
		r := httptest.NewRequest("GET", url, nil)
		if change != nil {
			change(r)
		}
		w := httptest.NewRecorder()
		s.front(w, r)
		body, ok := strings.CutPrefix(w.Body.String(), "var config = ")
		body, ok2 := strings.CutSuffix(body, ";\n")
		var c map[string]any
		if err := json.Unmarshal([]byte(body), &c); err != nil || !ok || !ok2 || strings.Contains(body, "</script") {
			t.Fatalf("%s: not plain data: %v\n%s", url, err, w.Body)
		}
		return c
	}
	c := get("http://localhost:8000/config.js", nil)
	hosts, p2p := c["hosts"].(map[string]any), c["p2p"].(map[string]any)
	if c["websocket"] != "ws://localhost:8000/xmpp-websocket" || hosts["domain"] != "localhost" ||
		hosts["muc"] != "conference.localhost" || hosts["focus"] != "focus.localhost" {
		t.Errorf("addresses: %v %v", c["websocket"], hosts)
	}
	if _, bosh := c["bosh"]; bosh || p2p["enabled"] != true || len(p2p["stunServers"].([]any)) != 0 || p2p["backToP2PDelay"] != 9.0 || c["enableIceRestart"] != true ||
		c["flags"].(map[string]any)["ssrcRewritingEnabled"] != true {
		t.Errorf("switches: %v", c)
	}
	// The client prefers what the focus offers, in its own order.
	if q := c["videoQuality"].(map[string]any); fmt.Sprint(q["codecPreferenceOrder"], q["mobileCodecPreferenceOrder"]) != "[AV1 VP9 VP8 H264] [VP8 VP9 H264 AV1]" {
		t.Errorf("codecs: %v", q)
	}
	all := Config{Focus: focus.Config{VideoCodecs: []string{"AV1", "VP8", "VP9"}}}
	if desktop, mobile := offered(&all, "AV1", "VP9", "VP8", "H264"), offered(&all, "VP8", "VP9", "H264", "AV1"); fmt.Sprint(desktop, mobile) != "[AV1 VP9 VP8] [VP8 VP9 AV1]" {
		t.Errorf("codecs: %v %v", desktop, mobile)
	}
	// A tenant has paths and rooms of its own.
	c = get("http://localhost:8000/school/config.js", nil)
	if c["websocket"] != "ws://localhost:8000/school/xmpp-websocket" || c["hosts"].(map[string]any)["muc"] != "conference.school.localhost" {
		t.Errorf("tenant: %v %v", c["websocket"], c["hosts"])
	}
	// Behind an edge the client speaks TLS; who is no edge cannot say so.
	proto := func(from string) func(*http.Request) {
		return func(r *http.Request) {
			r.RemoteAddr = from
			r.Header.Set("X-Forwarded-Proto", "https")
		}
	}
	if c = get("http://meet.example/config.js", proto("10.1.2.3:555")); c["websocket"] != "wss://meet.example/xmpp-websocket" {
		t.Errorf("behind an edge: %v", c["websocket"])
	}
	if c = get("http://meet.example/config.js", proto("192.0.2.1:555")); c["websocket"] != "ws://meet.example/xmpp-websocket" {
		t.Errorf("not behind an edge: %v", c["websocket"])
	}
	if c = get("https://meet.example:8443/config.js", func(r *http.Request) { r.TLS = new(tls.ConnectionState) }); c["websocket"] != "wss://meet.example:8443/xmpp-websocket" {
		t.Errorf("over TLS: %v", c["websocket"])
	}
	c = get("http://x/config.js", func(r *http.Request) { r.Host = `evil"+alert(1)+"` })
	if want := "ws://" + s.HTTPAddr().String() + "/xmpp-websocket"; c["websocket"] != want {
		t.Errorf("a host that is none: %v", c["websocket"])
	}
}

func TestConfigRefuses(t *testing.T) {
	for _, c := range []Config{
		{Domain: "a@b"}, {Domain: "a/b"}, {Accounts: []string{"x"}}, {Services: []Service{{Type: "http", Host: "x"}}},
		{ConfigJS: map[string]any{"f": func() {}}}, {HTTP: "nonsense"}, {Site: "testdata"},
	} {
		if c.HTTP == "" {
			c.HTTP = "127.0.0.1:0"
		}
		c.XMPP = "127.0.0.1:0"
		if s, err := New(c); err == nil {
			s.Close()
			t.Errorf("accepted %+v", c)
		}
	}
}
