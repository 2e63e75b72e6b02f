// Package web is the built-in client: a page that joins the room its address names. The bundle under dist
// is made from src by go generate and committed, so that a plain go build works; a test holds the two together.
package web

import (
	"embed"
	"io/fs"
	"net/http"
)

//go:generate go run generate.go

//go:embed dist
var dist embed.FS

// Files holds what the page is made of: index.html, main.js, style.css.
func Files() fs.FS {
	f, err := fs.Sub(dist, "dist")
	if err != nil {
		panic("web: " + err.Error())
	}
	return f
}

// Handler serves the page itself for every path but /static/, whose files it serves by name. Which paths
// are rooms is for its caller to decide.
func Handler() http.Handler {
	files := http.StripPrefix("/static/", http.FileServerFS(Files()))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /static/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Referrer-Policy", "no-referrer")
		http.ServeFileFS(w, r, Files(), "index.html")
	})
	return mux
}
