package bridge

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sort"
	"strings"
	"time"

	"plenum/bridge/conference"
	"plenum/wire/colibri"
)

// maxBody is the longest request body of the private interface.
const maxBody = 1 << 20

// private is the interface for operators and their tools, with the paths and answers of the Java bridge.
func (b *Bridge) private() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /about/health", b.serveHealth)
	mux.HandleFunc("GET /about/version", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, b.version()) })
	mux.HandleFunc("GET /colibri/stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, b.metrics.stats()) })
	mux.HandleFunc("POST /colibri/v2/conferences", b.serveConferences)
	mux.HandleFunc("POST /colibri/v2/conferences/{$}", b.serveConferences)
	mux.HandleFunc("PATCH /colibri/v2/conferences/{meeting}", b.serveConferences)
	mux.HandleFunc("GET /colibri/drain", func(w http.ResponseWriter, _ *http.Request) {
		drain, _, _ := b.state.get()
		writeJSON(w, map[string]bool{"drain": drain})
	})
	mux.HandleFunc("POST /colibri/drain/enable", func(http.ResponseWriter, *http.Request) { b.SetDraining(true) })
	mux.HandleFunc("POST /colibri/drain/disable", func(http.ResponseWriter, *http.Request) { b.SetDraining(false) })
	mux.HandleFunc("POST /colibri/shutdown", b.serveShutdown)
	mux.HandleFunc("GET /debug", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, b.debug("")) })
	mux.HandleFunc("GET /debug/{conference}", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, b.debug(r.PathValue("conference")))
	})
	mux.HandleFunc("GET /debug/rooms/{room}", func(w http.ResponseWriter, r *http.Request) { b.serveRoom(w, r.PathValue("room")) })
	mux.Handle("GET /metrics", b.metrics.handler())
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

type versionInfo struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	OS      string `json:"os"`
}

func (b *Bridge) version() versionInfo { return versionInfo{"plenum", b.cfg.Version, runtime.GOOS} }

func (b *Bridge) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if err := b.metrics.health(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// serveConferences is colibri2 in JSON. As from the Java bridge every refusal is 400; unlike there it says why.
func (b *Bridge) serveConferences(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var req colibri.ConferenceModify
	if err == nil {
		if id := r.PathValue("meeting"); id != "" {
			body, err = withMeeting(body, id)
		}
	}
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	if r.Method == http.MethodPatch {
		req.Create = false
	}
	type outcome struct {
		answer colibri.ConferenceModified
		err    error
	}
	out := make(chan outcome, 1)
	b.control.submit(req, func(answer colibri.ConferenceModified, err error) { out <- outcome{answer, err} })
	o := <-out
	if o.err != nil {
		refuse(w, o.err)
		return
	}
	writeJSON(w, o.answer)
}

// withMeeting puts the meeting id of the path into a body, which need not repeat it.
func withMeeting(body []byte, id string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, errors.Join(colibri.ErrMalformed, err)
	}
	if fields == nil {
		fields = map[string]json.RawMessage{}
	}
	fields["meeting-id"], _ = json.Marshal(id)
	return json.Marshal(fields)
}

func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		status = http.StatusRequestEntityTooLarge
	}
	answer := struct {
		Condition string `json:"condition,omitempty"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message"`
	}{Message: err.Error()}
	if s := stanzaError(err); s.Text != "" && status == http.StatusBadRequest {
		e, _ := colibri.ParseError(s)
		answer.Condition, answer.Reason = s.Condition, e.Reason
		if !errors.Is(err, colibri.ErrMalformed) {
			answer.Message = s.Text
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer)
}

func (b *Bridge) serveShutdown(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Graceful any `json:"graceful-shutdown"`
		Force    any `json:"force-shutdown"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&req); err != nil {
		http.Error(w, "a JSON object with graceful-shutdown or force-shutdown is needed", http.StatusBadRequest)
		return
	}
	yes := func(v any) bool { return v == true || v == "true" }
	switch {
	case yes(req.Graceful):
		b.log.Info("graceful shutdown requested")
		b.state.request(true)
	case yes(req.Force):
		b.log.Info("shutdown requested")
		b.state.request(false)
	default:
		http.Error(w, "graceful-shutdown or force-shutdown must be true", http.StatusBadRequest)
		return
	}
	b.report()
}

// debug is the state as a tree: all conferences, or one by its channel or meeting id in detail. It holds no
// password, key or address of a client.
func (b *Bridge) debug(which string) map[string]any {
	drain, graceful, shutting := b.state.get()
	state := "RUNNING"
	switch {
	case shutting:
		state = "SHUTTING_DOWN"
	case graceful:
		state = "GRACEFUL_SHUTDOWN"
	}
	health := map[string]any{"success": true}
	if err := b.metrics.health(); err != nil {
		health = map[string]any{"success": false, "message": err.Error()}
	}
	conferences := map[string]any{}
	for _, l := range b.control.conferences() {
		if which == "" || which == l.channel || which == l.meeting.id {
			conferences[l.channel] = l.debug(which != "")
		}
	}
	return map[string]any{
		"shutdown_state": state, "drain": drain, "time": b.cfg.Now().UnixMilli(),
		"relay_id": b.cfg.RelayID, "version": b.cfg.Version,
		"load_management": map[string]any{"stress": b.metrics.last().Stress.most(), "parts": b.metrics.last().Stress},
		"health":          health, "conferences": conferences,
	}
}

// serveRoom shows the conferences of a room in detail: the bridge's half of what plenum room trace prints. The room is
// its name or its address.
func (b *Bridge) serveRoom(w http.ResponseWriter, room string) {
	conferences := []map[string]any{}
	for _, l := range b.control.conferences() {
		name, _, _ := strings.Cut(l.name, "@")
		if room == l.name || room == name || room == l.meeting.id {
			conferences = append(conferences, l.debug(true))
		}
	}
	if len(conferences) == 0 {
		http.Error(w, "no such room", http.StatusNotFound)
		return
	}
	writeJSON(w, map[string]any{"bridge": b.cfg.RelayID, "version": b.cfg.Version, "stress": b.metrics.last().Stress.most(), "conferences": conferences})
}

func (l *live) debug(full bool) map[string]any {
	out := map[string]any{
		"id": l.channel, "name": l.b.hash(l.name), "meeting_id": l.meeting.id, "created": l.created.UnixMilli(),
		"relays": map[string]any{},
	}
	l.mu.RLock()
	var all []*member
	for _, e := range l.endpoints {
		all = append(all, e)
	}
	l.mu.RUnlock()
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	endpoints := map[string]any{}
	for _, e := range all {
		if !full {
			endpoints[e.id] = e.statsID
			continue
		}
		data, socket := e.channel.open()
		endpoints[e.id] = map[string]any{
			"stats_id": e.statsID, "visitor": e.visitor, "created": e.created.UnixMilli(),
			"connected": e.connected.Load(), "failed": e.failed.Load(), "heard": e.heard.Load() / 1e6,
			"data_channel": data, "web_socket": socket,
		}
	}
	out["endpoints"] = endpoints
	if full {
		done := make(chan conference.Stats, 1)
		if l.do(func(now time.Time) { done <- l.conf.Snapshot(now) }) {
			select {
			case s := <-done:
				out["media"] = s
			case <-time.After(time.Second):
				out["media"] = "the core does not answer"
			}
		}
	}
	return out
}
