package focus

import (
	"bufio"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/signaling/fleet"
	"plenum/wire/colibri"
	"plenum/wire/jid"
	"plenum/wire/jingle"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestTranscripts plays testdata/*.txt: one verb, then the actions that the conference answers with.
// The verbs are the methods of world below.
func TestTranscripts(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no transcripts")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(b), got); diff != "" {
				t.Errorf("(-file +now)\n%s", diff)
			}
		})
	}
}

// play keeps comments, empty lines and verbs, and writes actions between ---- and the next empty line.
func play(t *testing.T, script string) string {
	var out strings.Builder
	w := newWorld(t)
	inActions := false
	in := bufio.NewScanner(strings.NewReader(script))
	for in.Scan() {
		line := in.Text()
		switch {
		case line == "----":
			inActions = true
			continue
		case line == "":
			inActions = false
		}
		if inActions {
			continue
		}
		out.WriteString(line + "\n")
		verb, _, _ := strings.Cut(line, " #")
		fields := strings.Fields(verb)
		if len(fields) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		if fields[0] == "config" {
			w.configure(fields[1:])
			continue
		}
		out.WriteString("----\n")
		for _, l := range w.do(fields[0], fields[1:]) {
			out.WriteString(l + "\n")
		}
	}
	return out.String()
}

// A world is everything around one conference: clients, bridges and the clock.
type world struct {
	t       *testing.T
	now     time.Time
	cfg     Config
	c       *Conference
	bridges bridgesFake
	sids    map[string]string // last offer of each nick
	bridge  map[string]string // bridge-session id of it
	asked   []BridgeRequest   // not answered
	offers  map[string]RequestID
	queries map[string]RequestID
	timers  map[string]time.Time
	iq      int
	ssrc    int
}

// bridgesFake is a fleet in which the order of arrival decides.
type bridgesFake struct {
	all     []fleet.Choice
	last    fleet.Request
	closing jid.JID // shuts down; it is not in all
}

func (f *bridgesFake) Select(_ time.Time, r fleet.Request) (fleet.Choice, bool) {
	f.last = r
	for _, c := range f.all {
		for _, u := range r.Conference {
			if u == c.Bridge {
				return c, true
			}
		}
	}
	if len(f.all) == 0 {
		return fleet.Choice{}, false
	}
	return f.all[0], true
}

func (f *bridgesFake) Leave(_ time.Time, b jid.JID) bool { return b == f.closing && len(f.all) > 0 }

func (f *bridgesFake) Failed(_ time.Time, b jid.JID, _ bool) { f.remove(b) }

func (f *bridgesFake) Serves(jid.JID, []netip.AddrPort) {}
func (f *bridgesFake) Trouble(time.Time, jid.JID)       {}

func (f *bridgesFake) remove(b jid.JID) {
	f.all = slices.DeleteFunc(f.all, func(c fleet.Choice) bool { return c.Bridge == b })
}

// capsFake knows one version of the client, "known".
type capsFake map[string][]string

func (f capsFake) Features(ver string) ([]string, bool)   { l, ok := f[ver]; return l, ok }
func (f capsFake) Remember(ver string, features []string) { f[ver] = features }

// recorded are the features of the client in the recordings; their hash is that of its presence.
var recorded = strings.Fields(`http://jabber.org/protocol/caps http://jitsi.org/json-encoded-sources http://jitsi.org/receive-multiple-video-streams
	http://jitsi.org/remb http://jitsi.org/source-name http://jitsi.org/ssrc-rewriting-1 http://jitsi.org/start-muted-room-metadata http://jitsi.org/tcc
	http://jitsi.org/visitors-1 urn:ietf:rfc:4588 urn:xmpp:jingle:1 urn:xmpp:jingle:apps:dtls:0 urn:xmpp:jingle:apps:rtp:1 urn:xmpp:jingle:apps:rtp:audio
	urn:xmpp:jingle:apps:rtp:video urn:xmpp:jingle:transports:dtls-sctp:1 urn:xmpp:jingle:transports:ice-udp:1 urn:xmpp:rayo:client:1`)

const recordedVer = "+mpajJhafj8jFogLBKsPbQfMgzU="

// counting reads as 0…01, 0…02 and so on.
type counting struct{ n byte }

func (r *counting) Read(b []byte) (int, error) {
	clear(b)
	r.n++
	b[len(b)-1] = r.n
	return len(b), nil
}

func brewery(name string) jid.JID {
	return jid.MustParse("jvbbrewery@internal.auth.meet.local/" + name)
}

func newWorld(t *testing.T) *world {
	plain := slices.DeleteFunc(slices.Clone(recorded), func(f string) bool { return strings.Contains(f, "rewriting") })
	w := &world{
		t: t, now: time.Unix(0, 0), sids: map[string]string{}, bridge: map[string]string{}, offers: map[string]RequestID{},
		queries: map[string]RequestID{}, timers: map[string]time.Time{},
	}
	w.bridges.all = []fleet.Choice{{Bridge: brewery("jvb1")}}
	w.cfg = Config{
		Room: jid.MustParse("golden@conference.meet.local"), Self: jid.MustParse("focus@auth.meet.local/focus"), MeetingID: "m1",
		Fleet: &w.bridges, Rand: &counting{},
		Caps: capsFake{"known": recorded, "plain": plain, "mid": append(slices.Clip(recorded), "http://jitsi.org/rtp-mid-demux", "http://jitsi.org/opus-red")},
	}
	return w
}

func (w *world) configure(args []string) {
	for _, a := range args {
		switch a {
		case "nobridge":
			w.bridges.all = nil
		case "two-bridges":
			w.bridges.all = append(w.bridges.all, fleet.Choice{Bridge: brewery("jvb2"), Region: "ber"})
		case "no-auto-owner":
			w.cfg.NoAutoOwner = true
		case "one-sender":
			w.cfg.MaxAudioSenders, w.cfg.MaxVideoSenders = 1, 1
		case "all-codecs":
			w.cfg.VideoCodecs = []string{"AV1", "VP8", "H264", "VP9"}
		default:
			w.t.Fatalf("config %s", a)
		}
	}
}

func (w *world) step(ev Event) []string {
	if w.c == nil {
		w.c = New(w.cfg, w.now)
	}
	var lines []string
	for _, a := range w.c.Step(w.now, ev) {
		lines = append(lines, w.describe(a))
	}
	return lines
}

func (w *world) do(verb string, args []string) []string {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	has := func(s string) bool { return slices.Contains(args, s) }
	value := func(key, absent string) string {
		for _, a := range args {
			if v, ok := strings.CutPrefix(a, key+"="); ok {
				return v
			}
		}
		return absent
	}
	switch verb {
	case "open":
		return w.step(Opened{})
	case "join", "change": // NICK [owner] [hidden] [caps=VER] [on=KIND,KIND: unmuted sources]
		o := Occupant{Nick: arg(0), JID: jid.MustParse(arg(0) + "@meet.local/r"), Owner: has("owner"), Hidden: has("hidden"), Region: value("region", ""), Family: value("family", "")}
		o.Presence = []*xmpp.Element{xmpp.New("", "stats-id").AddText("Zed-xyz")}
		if ver := value("caps", "known"); ver != "none" {
			o.Presence = append(o.Presence, xmpp.New(xmpp.NSCaps, "c", "hash", "sha-1", "node", "https://jitsi.org/jitsi-meet", "ver", ver))
		}
		if on := value("on", ""); on != "" {
			info := meet.SourceInfo{o.Nick + "-a9": {Muted: true}, "other-a0": {}}
			for _, kind := range strings.Split(on, ",") {
				info[o.Nick+"-"+kind] = meet.SourceState{}
			}
			o.Presence = append(o.Presence, info.Element())
		}
		if verb == "change" {
			return w.step(Changed{o})
		}
		return w.step(Joined{o})
	case "leave":
		return w.step(Left{arg(0)})
	case "features": // NICK [error]: answers the question for them
		q := xmpp.New(xmpp.NSDisco, "query")
		for _, f := range recorded {
			q.Add(xmpp.New(xmpp.NSDisco, "feature", "var", f))
		}
		iq := xmpp.IQ("result", "", "", "", q)
		if has("error") {
			iq = xmpp.IQ("error", "", "", "", xmpp.StanzaError{Condition: xmpp.ServiceUnavailable}.Element())
		}
		return w.step(Answer{w.queries[arg(0)], iq})
	case "bridge": // NAME [all] [timeout | CONDITION [reason=R]] [no-sctp]: answers its oldest request that wants one, or all
		if arg(1) == "all" {
			var lines []string
			for slices.ContainsFunc(w.asked, func(r BridgeRequest) bool { return r.Bridge == brewery(arg(0)) }) {
				lines = append(lines, w.do(verb, slices.Delete(slices.Clone(args), 1, 2))...)
			}
			return lines
		}
		i := slices.IndexFunc(w.asked, func(r BridgeRequest) bool { return r.Bridge == brewery(arg(0)) })
		if i < 0 {
			w.t.Fatalf("%s owes no answer", arg(0))
		}
		r := w.asked[i]
		w.asked = slices.Delete(w.asked, i, i+1)
		var iq *xmpp.Element
		switch arg(1) {
		case "", "no-sctp", "websocket", "no-transport":
			iq = xmpp.IQ("result", "", "", "", w.modified(r.Payload, args))
		case "timeout":
		default:
			e := xmpp.StanzaError{Condition: arg(1)}
			if r := value("reason", ""); r != "" {
				e.App = colibri.Error{Reason: r}.Elements()
			}
			iq = xmpp.IQ("error", "", "", "", e.Element())
		}
		return w.step(BridgeAnswer{r.ID, iq})
	case "taken", "refused": // NICK: the client's result or error to its offer
		iq := xmpp.IQ("result", "", "", "")
		if verb == "refused" {
			iq = xmpp.IQ("error", "", "", "", xmpp.StanzaError{Condition: xmpp.ItemNotFound}.Element())
		}
		return w.step(Answer{w.offers[arg(0)], iq})
	case "accept": // NICK [sid=S] [muted] [ssrc=N] [msid=M] [no-transport] [last-n=N]
		s := w.accept(arg(0), value("sid", w.sids[arg(0)]), has("muted"), has("no-transport"), value("ssrc", ""), value("msid", ""))
		if n, err := strconv.Atoi(value("last-n", "")); err == nil {
			s.Contents[1].InitialLastN = &n
		}
		return w.jingle(arg(0), s)
	case "source-add", "source-remove": // NICK SSRC,SSRC [name=N] [msid=M] [fid] [audio]
		content := jingle.Content{Name: "video", Media: "video"}
		if has("audio") {
			content = jingle.Content{Name: "audio", Media: "audio"}
		}
		var ssrcs []uint32
		for _, s := range strings.Split(arg(1), ",") {
			n, _ := strconv.ParseUint(s, 10, 32)
			ssrcs = append(ssrcs, uint32(n))
			content.Sources = append(content.Sources, jingle.Source{
				SSRC: uint32(n), Name: value("name", arg(0)+"-v1"), VideoType: "desktop", MSID: value("msid", arg(0)+"-video-1 t"),
			})
		}
		if has("fid") {
			content.Groups = []jingle.SourceGroup{{Semantics: "FID", SSRCs: ssrcs}}
		}
		return w.jingle(arg(0), jingle.Session{Action: verb, SID: value("sid", w.sids[arg(0)]), Contents: []jingle.Content{content}})
	case "terminate": // NICK [restart] [sid=S] [bridge=ID]
		s := jingle.Session{Action: jingle.SessionTerminate, SID: value("sid", w.sids[arg(0)]), Reason: &jingle.Reason{Condition: "success"}}
		if has("restart") {
			s.Bridge = &jingle.BridgeSession{ID: value("bridge", w.bridge[arg(0)]), Restart: true}
		}
		return w.jingle(arg(0), s)
	case "ice-restart": // NICK [bridge=ID]
		return w.jingle(arg(0), jingle.Session{
			Action: jingle.SessionInfo, SID: w.sids[arg(0)], Bridge: &jingle.BridgeSession{ID: value("bridge", w.bridge[arg(0)]), ICERestart: true},
		})
	case "transport-info": // NICK [stray]
		generation := 1
		if has("stray") {
			generation = 0
		}
		return w.jingle(arg(0), jingle.Session{
			Action: jingle.TransportInfo, SID: w.sids[arg(0)], Contents: []jingle.Content{{Name: "audio", Transport: clientTransport(arg(0), generation)}},
		})
	case "jingle": // NICK ACTION
		return w.jingle(arg(0), jingle.Session{Action: arg(1), SID: value("sid", w.sids[arg(0)])})
	case "mute": // FROM TARGET KIND TRUE
		return w.stanza(arg(0), "set", xmpp.New(meet.NSMute+arg(2), "mute", "jid", "golden@conference.meet.local/"+arg(1)).AddText(arg(3)))
	case "iq": // NICK TYPE NAMESPACE NAME
		return w.stanza(arg(0), arg(1), xmpp.New(arg(2), arg(3)))
	case "lost":
		w.bridges.remove(brewery(arg(0)))
		w.asked = slices.DeleteFunc(w.asked, func(r BridgeRequest) bool { return r.Bridge == brewery(arg(0)) })
		return w.step(BridgeLost{brewery(arg(0))})
	case "back":
		return w.step(BridgeBack{brewery(arg(0))})
	case "appears":
		w.bridges.all = append(w.bridges.all, fleet.Choice{Bridge: brewery(arg(0)), Region: value("region", "")})
		return w.step(BridgesChanged{})
	case "closing":
		w.bridges.closing = brewery(arg(0))
		w.bridges.remove(w.bridges.closing)
		return w.step(BridgesChanged{})
	case "timer": // KEY: one that fires although nobody waits for it
		return w.step(TimerFired{arg(0)})
	case "after": // DURATION
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			w.t.Fatal(err)
		}
		return w.pass(d)
	}
	w.t.Fatalf("unknown verb %s", verb)
	return nil
}

// pass lets time pass and timers fire in order.
func (w *world) pass(d time.Duration) []string {
	var lines []string
	end := w.now.Add(d)
	for {
		var key string
		for k, due := range w.timers {
			if !due.After(end) && (key == "" || due.Before(w.timers[key]) || due.Equal(w.timers[key]) && k < key) {
				key = k
			}
		}
		if key == "" {
			w.now = end
			return lines
		}
		w.now = w.timers[key]
		delete(w.timers, key)
		lines = append(lines, "("+key+")")
		lines = append(lines, w.step(TimerFired{key})...)
	}
}

func (w *world) stanza(nick, typ string, payload *xmpp.Element) []string {
	w.iq++
	return w.step(Stanza{nick, xmpp.IQ(typ, "iq"+strconv.Itoa(w.iq), nick+"@meet.local/r", "golden@conference.meet.local/focus", payload)})
}

func (w *world) jingle(nick string, s jingle.Session) []string {
	return w.stanza(nick, "set", s.Element())
}

func clientTransport(nick string, generation int) *jingle.Transport {
	return &jingle.Transport{Ufrag: (nick + "ufrag")[:4], Pwd: "pwdpwdpwdpwdpwdpwdpwdpwd", Generation: generation, Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "active", Value: "A4:D1"}}}
}

// accept is a session-accept with audio and a camera in three encodings.
func (w *world) accept(nick, sid string, muted, noTransport bool, ssrc, msid string) jingle.Session {
	t := clientTransport(nick, 0)
	if noTransport {
		t = nil
	}
	audio := jingle.Content{Name: "audio", Creator: "responder", Media: "audio", Transport: t}
	video := jingle.Content{Name: "video", Creator: "responder", Media: "video", Transport: t}
	if !muted {
		w.ssrc += 100
		base := uint32(w.ssrc)
		if n, err := strconv.ParseUint(ssrc, 10, 32); err == nil {
			base = uint32(n)
		}
		if msid == "" {
			msid = nick
		}
		audio.Sources = []jingle.Source{{SSRC: base, Name: nick + "-a0", MSID: msid + "-audio-0 t"}}
		for i := range uint32(6) {
			video.Sources = append(video.Sources, jingle.Source{SSRC: base + 1 + i, Name: nick + "-v0", VideoType: "camera", MSID: msid + "-video-0 t"})
		}
		video.Groups = []jingle.SourceGroup{
			{Semantics: "SIM", SSRCs: []uint32{base + 1, base + 2, base + 3}}, {Semantics: "FID", SSRCs: []uint32{base + 1, base + 4}},
			{Semantics: "FID", SSRCs: []uint32{base + 2, base + 5}}, {Semantics: "FID", SSRCs: []uint32{base + 3, base + 6}},
		}
	}
	return jingle.Session{Action: jingle.SessionAccept, SID: sid, Contents: []jingle.Content{audio, video}}
}

// modified is what a bridge answers.
func (w *world) modified(payload *xmpp.Element, args []string) *xmpp.Element {
	m, err := colibri.ParseModify(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	has := func(s string) bool { return slices.Contains(args, s) }
	var out colibri.ConferenceModified
	for _, e := range m.Endpoints {
		x := colibri.Endpoint{ID: e.ID}
		restart := e.Transport != nil && e.Transport.ICERestart
		if (e.Create || restart) && !has("no-transport") {
			x.Transport = &colibri.Transport{ICE: &jingle.Transport{
				Ufrag: "u" + e.ID, Pwd: "p", RTCPMux: true, Fingerprints: []jingle.Fingerprint{{Hash: "sha-256", Setup: "actpass", Value: "D4:2B"}},
				Candidates: []jingle.Candidate{{ID: "c", Foundation: "1", Component: 1, Protocol: "udp", Priority: 2130706431, IP: "10.99.0.11", Port: 10000, Type: "host"}},
			}}
			if restart {
				x.Transport.ICE.Generation = 1
			}
			if e.Transport.SCTP != nil && !has("no-sctp") {
				x.Transport.SCTP = &colibri.SCTP{Port: 5000, Role: "server"}
			}
			if has("websocket") {
				x.Transport.ICE.WebSockets = []string{"wss://meet.local/colibri-ws/jvb1/m1/" + e.ID + "?pwd=p"}
			}
		}
		if e.Create {
			out.Sources = &colibri.Sources{Media: []colibri.MediaSource{
				{ID: "jvb-a0", Type: "audio", Sources: []jingle.Source{{SSRC: 1, Name: "jvb-a0"}}},
				{ID: "jvb-v0", Type: "video", Sources: []jingle.Source{{SSRC: 2, Name: "jvb-v0"}}},
			}}
		}
		out.Endpoints = append(out.Endpoints, x)
	}
	return out.Element()
}

// describe writes an action in a line and keeps what later verbs need of it.
func (w *world) describe(a Action) string {
	switch a := a.(type) {
	case SendIQ:
		return w.describeIQ(a)
	case Reply:
		if e, isError := xmpp.ParseError(a.IQ); isError {
			return fmt.Sprintf("%s <- error %s %v", a.To, a.IQ.Attr("id"), e)
		}
		return fmt.Sprintf("%s <- %s %s", a.To, a.IQ.Attr("type"), a.IQ.Attr("id"))
	case SetPresence:
		line := "presence"
		for _, e := range a.Children {
			if e.Name == "bridgeNotAvailable" {
				line += " bridgeNotAvailable"
			}
			for p := range e.Children {
				if p.Name == "property" {
					line += " " + p.Attr("key") + "=" + p.Attr("value")
				}
			}
		}
		return line
	case Affiliate:
		return "affiliate " + a.Nick + " " + a.Affiliation
	case BridgeRequest:
		if a.ID != 0 {
			w.asked = append(w.asked, a)
		}
		return w.describeModify(a)
	case SetTimer:
		w.timers[a.Key] = w.now.Add(a.After)
		return fmt.Sprintf("timer %s %v", a.Key, a.After)
	case CancelTimer:
		delete(w.timers, a.Key)
		return "cancel " + a.Key
	case Stop:
		return "stop"
	}
	return fmt.Sprintf("%T", a)
}

func (w *world) describeIQ(a SendIQ) string {
	line := a.To + " <- " + a.Type + " "
	if a.Payload.Name != "jingle" {
		if a.Payload.Name == "query" {
			w.queries[a.To] = a.ID
		}
		return line + a.Payload.String()
	}
	s, err := jingle.Parse(a.Payload)
	if err != nil {
		w.t.Fatal(err)
	}
	line += s.Action + " sid=" + s.SID
	if s.Action == jingle.SessionInitiate {
		w.sids[a.To], w.bridge[a.To], w.offers[a.To] = s.SID, s.Bridge.ID, a.ID
		line += " contents=" + strings.Join(s.Bundle, ",") + " bridge=" + s.Bridge.ID
		if s.Bridge.Region != "" {
			line += " region=" + s.Bridge.Region
		}
	}
	if t := s.Transport(); t != nil {
		line += " ufrag=" + t.Ufrag
		if t.Generation != 0 {
			line += fmt.Sprintf(" generation=%d", t.Generation)
		}
		if len(t.WebSockets) > 0 {
			line += " websocket"
		}
	}
	if s.Reason != nil {
		line += fmt.Sprintf(" reason=%s %q", s.Reason.Condition, s.Reason.Text)
	}
	for _, e := range s.Sources {
		line += " " + e.Owner + ":" + describeMedia(e.Audio, e.Video)
	}
	return line
}

func describeMedia(media ...jingle.MediaSources) string {
	var parts []string
	for _, m := range media {
		for _, s := range m.Sources {
			parts = append(parts, fmt.Sprint(s.SSRC))
		}
		for _, g := range m.Groups {
			parts = append(parts, g.Semantics+fmt.Sprint(g.SSRCs))
		}
	}
	return strings.Join(parts, ",")
}

func (w *world) describeModify(a BridgeRequest) string {
	m, err := colibri.ParseModify(a.Payload)
	if err != nil {
		w.t.Fatal(err)
	}
	line := a.Bridge.Resource() + " <-"
	if m.Create {
		line += " create " + m.Name
	}
	if m.Expire {
		line += " expire"
	}
	for _, e := range m.Endpoints {
		line += " endpoint " + e.ID
		if e.Create {
			line += " create"
		}
		if e.Expire {
			line += " expire"
		}
		for _, k := range e.Capabilities {
			line += " +" + k
		}
		for _, k := range e.Media {
			line += " " + k.Type
		}
		if t := e.Transport; t != nil {
			if t.SCTP != nil {
				line += " sctp"
			}
			if t.ICERestart {
				line += " ice-restart"
			}
			if t.ICE != nil {
				line += fmt.Sprintf(" ufrag=%s", t.ICE.Ufrag)
				if t.ICE.Generation != 0 {
					line += fmt.Sprintf(" generation=%d", t.ICE.Generation)
				}
			}
		}
		if e.InitialLastN != nil {
			line += fmt.Sprintf(" last-n=%d", *e.InitialLastN)
		}
		if e.Sources != nil {
			var parts []string
			for _, s := range e.Sources.Media {
				parts = append(parts, s.ID+":"+describeMedia(jingle.MediaSources{Sources: s.Sources, Groups: s.Groups}))
			}
			line += " sources{" + strings.Join(parts, " ") + "}"
		}
	}
	return line
}
