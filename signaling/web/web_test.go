package web

import (
	"bytes"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"plenum/signaling/web/bundle"
)

func TestDistIsMadeFromSource(t *testing.T) {
	files, err := bundle.Files("src")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := fs.ReadFile(Files(), name)
		if err != nil {
			t.Errorf("%s is not in dist: run make generate", name)
		} else if !bytes.Equal(got, want) {
			t.Errorf("dist/%s is not what src makes: run make generate", name)
		}
	}
	kept, err := fs.ReadDir(Files(), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range kept {
		if _, ok := files[f.Name()]; !ok {
			t.Errorf("dist/%s is made from nothing: delete it", f.Name())
		}
	}
}

func TestHandler(t *testing.T) {
	for _, test := range []struct {
		path, contains, kind string
		status               int
	}{
		{"/", `id="entry"`, "text/html", http.StatusOK},
		{"/standup", `id="entry"`, "text/html", http.StatusOK},
		{"/static/main.js", "RTCPeerConnection", "text/javascript", http.StatusOK},
		{"/static/style.css", ".tile", "text/css", http.StatusOK},
		{"/static/none.js", "", "", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, httptest.NewRequest("GET", test.path, nil))
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.contains) || !strings.HasPrefix(w.Header().Get("Content-Type"), test.kind) && test.kind != "" {
			t.Errorf("GET %s: %d %s, want %d %s with %q", test.path, w.Code, w.Header().Get("Content-Type"), test.status, test.kind, test.contains)
		}
	}
}
