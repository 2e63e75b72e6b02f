package signaling

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/gorilla/websocket"

	"plenum/signaling/handover"
	"plenum/signaling/site"
	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// maxRequestBytes bounds the body of a conference request.
const maxRequestBytes = 16 << 10

// A place is what a path means.
type place int

const (
	nowhere place = iota
	page
	file
	configFile
	socket
	conferenceRequest
	health
	bridgeChannel
)

// folders are those of a web application's files.
var folders = map[string]bool{
	"connection_optimization": true, "css": true, "fonts": true, "images": true, "lang": true, "libs": true, "sounds": true, "static": true,
	".well-known": true,
}

// locate says what a path means, for which tenant, and what it is called below the tenant: /ROOM, /TENANT/ROOM,
// and the shard's own files and services, all but health and the bridge's with or without a tenant. A name of
// one part may be a file of the web application as well as a room; a reserved one is no room.
func locate(path string) (p place, tenant, name string) {
	name = strings.TrimPrefix(path, "/")
	first, rest, more := strings.Cut(name, "/")
	switch {
	case first == "config.js" && !more:
		return configFile, "", name
	case first == "xmpp-websocket" && !more:
		return socket, "", name
	case name == "conference-request/v1":
		return conferenceRequest, "", name
	case name == "about/health":
		return health, "", name
	case first == "colibri-ws":
		return bridgeChannel, "", name
	case folders[first] && more:
		return file, "", name
	case !more && (meet.ReservedName(first) || folders[first]):
		return file, "", name
	case !more:
		return page, "", name
	case meet.ReservedName(first):
		return nowhere, "", ""
	case rest == "": // ROOM/
		return page, "", first
	case !tenantName(first):
		return nowhere, "", ""
	}
	// A tenant's path means what it means without the tenant. There are no tenants of tenants.
	p, above, name := locate("/" + rest)
	if above != "" || p == health || p == bridgeChannel || p == nowhere {
		return nowhere, "", ""
	}
	return p, strings.ToLower(first), name
}

// tenantName reports whether a tenant can be one label of a domain.
func tenantName(s string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// front answers everything that clients ask over HTTP.
func (s *Server) front(w http.ResponseWriter, r *http.Request) {
	p, tenant, name := locate(r.URL.Path)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if q := r.URL.Query(); s.cfg.Shard != "" && q.Get("room") != "" && !websocket.IsWebSocketUpgrade(r) {
		// A client that sees another shard than its own leaves its call. Nobody's name says nothing.
		if owner := s.ownerOf(r, s.names.room(q.Get("room"), cmp.Or(q.Get("prefix"), tenant))); owner != "" {
			h.Set("X-Jitsi-Shard", owner)
			h.Set("Access-Control-Expose-Headers", "X-Jitsi-Shard")
		}
	}
	if p != conferenceRequest && p != socket && p != bridgeChannel && r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	switch {
	case p == health:
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Content-Type", "text/plain; charset=utf-8")
		if s.draining.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "draining\n")
			return
		}
		if s.cfg.Health != nil {
			if err := s.cfg.Health(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		io.WriteString(w, "OK\n")
	case p == configFile:
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Content-Type", "application/javascript; charset=utf-8")
		h.Set("Cache-Control", "no-cache")
		w.Write(configJS(&s.cfg, s.names, s.base(r), tenant))
	case p == socket:
		s.webSocket(w, r, tenant)
	case p == conferenceRequest:
		if !s.elsewhere(w, r) {
			s.conference(w, r)
		}
	case p == bridgeChannel && s.cfg.BridgeChannel != nil:
		s.cfg.BridgeChannel.ServeHTTP(w, r)
	case p == page && len(r.URL.Path) > 1 && strings.HasSuffix(r.URL.Path, "/"):
		// The page finds its config.js beside itself, so a room has one address.
		http.Redirect(w, r, "/"+strings.Trim(r.URL.EscapedPath(), "/"), http.StatusMovedPermanently)
	case (p == page || p == file) && s.site != nil:
		s.application(w, r, p, tenant, name)
	case (p == page || p == file && tenant == "" && strings.HasPrefix(name, "static/")) && s.cfg.Web != nil:
		s.cfg.Web.ServeHTTP(w, r)
	default:
		http.NotFound(w, r)
	}
}

// application serves the stock web application: its files, and its one page for every room.
func (s *Server) application(w http.ResponseWriter, r *http.Request, p place, tenant, name string) {
	values := func() site.Values {
		return site.Values{Config: configJS(&s.cfg, s.names, s.base(r), tenant), Tenant: tenant}
	}
	switch {
	case name == "external_api.js":
		name = "libs/external_api.min.js" // what pages elsewhere are told to embed
	case name == "", p == page && !strings.Contains(name, "."):
		name = "index.html"
	}
	if !s.site.File(w, r, name, values) && (p != page || !s.site.File(w, r, "index.html", values)) {
		http.NotFound(w, r)
	}
}

// webSocket takes a session. A plain GET is the client's keep-alive: only its headers matter.
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request, tenant string) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Cache-Control", "no-store")
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
			w.WriteHeader(http.StatusOK)
		default:
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
		return
	}
	if q := r.URL.Query(); tenant != "" && q.Get("prefix") == "" {
		q.Set("prefix", tenant)
		r.URL.RawQuery = q.Encode()
	}
	if p := s.cfg.Handover; p != nil {
		q := r.URL.Query()
		if room := s.names.room(q.Get("room"), q.Get("prefix")); !room.IsZero() && p.Take(w, r, room, s.client(r), q.Get("previd") != "") {
			return
		}
	}
	s.sessions.ServeHTTP(w, r)
}

// ownerOf names the shard that has a room; this one, where there is no other.
func (s *Server) ownerOf(r *http.Request, room jid.JID) string {
	if s.cfg.Handover == nil || room.IsZero() {
		return s.cfg.Shard
	}
	return s.cfg.Handover.Owner(r.Context(), room)
}

// client is who sent a request, for another shard to know.
func (s *Server) client(r *http.Request) handover.Client {
	remote, region := s.sessions.Origin(r)
	return handover.Client{Remote: remote, Region: region, Secure: strings.HasPrefix(s.base(r), "wss")}
}

// elsewhere takes a conference request for another shard's room there and reports whether it has answered.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request) bool {
	if s.cfg.Handover == nil || r.Method != http.MethodPost {
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{err}))
	var in struct {
		Room string `json:"room"`
	}
	if err != nil || json.Unmarshal(body, &in) != nil {
		return false // and refused where it is read again
	}
	room, err := jid.Parse(in.Room)
	return err == nil && s.hall.isConference(room) && room.IsBare() && s.cfg.Handover.Take(w, r, room, s.client(r), false)
}

// failing reads nothing, and then fails as somebody has before; a nil error is the end.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, cmp.Or(f.err, io.EOF) }

// conference is the conference request over HTTP, answered as Jicofo does, and with
// the CORS headers that Jicofo leaves to others.
func (s *Server) conference(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
	h.Set("Access-Control-Max-Age", "7200")
	switch r.Method {
	case http.MethodOptions:
		w.WriteHeader(http.StatusOK)
		return
	case http.MethodPost:
	default:
		h.Set("Allow", "POST, OPTIONS")
		http.Error(w, "only POST", http.StatusMethodNotAllowed)
		return
	}
	var in meet.Conference
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes)).Decode(&in)
	if err != nil && !errors.Is(err, meet.ErrMalformed) { // without a room, which is said below
		code := http.StatusBadRequest
		var long *http.MaxBytesError
		if errors.As(err, &long) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "Bad request: not a conference request", code)
		return
	}
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		in.Token = bearer
	}
	var answer meet.Conference
	if s.router.stock && in.Room != "" {
		answer, err = s.router.ask(r.Context(), in)
	} else {
		answer, err = s.router.conference(r.Context(), in.Room, s.sessions.Remote(r))
	}
	if err != nil {
		e := stanzaError(err)
		code := http.StatusBadRequest
		switch e.Condition {
		case xmpp.NotAuthorized, xmpp.Forbidden:
			code = http.StatusForbidden
		case xmpp.ResourceConstraint:
			code = http.StatusTooManyRequests
			comeAgain(h)
		case xmpp.InternalServerError, xmpp.ServiceUnavailable:
			code = http.StatusServiceUnavailable
			comeAgain(h)
		}
		http.Error(w, "Bad request: "+e.Error(), code)
		return
	}
	h.Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer)
}

// base is the origin of a request as a WebSocket URL.
func (s *Server) base(r *http.Request) string {
	scheme := "ws"
	if r.TLS != nil || s.sessions.FromEdge(r) && r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "wss"
	}
	return scheme + "://" + s.host(r.Host)
}

// host returns what a client calls us, or our own address if that is not a host.
func (s *Server) host(h string) string {
	if _, err := netip.ParseAddrPort(h); err == nil {
		return h
	}
	for _, c := range []byte(h) {
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._:[]", c) >= 0) {
			h = ""
			break
		}
	}
	if h == "" {
		return s.HTTPAddr().String()
	}
	return h
}
