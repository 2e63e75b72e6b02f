package muc

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata with what the room does now")

// A transcript file is a list of steps: one verb, then ---- and what leaves the room. Lines that begin
// with # are comments. Verbs:
//
//	room [brewery] [nofocus] [occupants=N] [held=N] [history=N]   a new room; everybody's names are kept
//	user NAME JID [service] [region=R] [nick=NICK]                 who sends; default nick is the name
//	join NAME [password=P]                                         presence with muc x and children as recorded
//	presence NAME XML                                              further presence with these children
//	leave NAME [XML]
//	gone NAME                                                      its session is closed for good
//	send NAME XML                                                  any stanza; {room} and {ID} are replaced
//	destroy REASON
//	pass DURATION                                                  time goes on
//	show xml|short                                                 how stanzas are printed
//
// {NAME} in XML is the real JID of a user, {LASTID} the id of the last IQ that left the room.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts:", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("run with -update and review the difference (- file, + room):\n%s", d)
			}
		})
	}
}

// replay returns the transcript with the room's present answers.
func replay(t *testing.T, text string) string {
	s := newScene()
	var out strings.Builder
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	skipping := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case skipping && line != "":
		case line == "" || strings.HasPrefix(line, "#"):
			skipping = false
			out.WriteString(line + "\n")
		case line == "----":
			skipping = true
		default:
			out.WriteString(line + "\n----\n")
			for _, l := range s.step(t, line) {
				out.WriteString(l + "\n")
			}
		}
	}
	return out.String()
}

type scene struct {
	room   *Room
	now    time.Time
	users  map[string]*user
	names  map[jid.JID]string
	xml    bool
	lastID string
}

type user struct {
	Sender
	nick string
}

const testRoom = "golden@conference.meet.local"

var (
	testFocus    = jid.MustParse("focus@auth.meet.local")
	testMetadata = jid.MustParse("metadata.meet.local")
	start        = time.Date(2026, 11, 20, 20, 15, 0, 0, time.UTC)
)

func testConfig() Config {
	return Config{
		JID: jid.MustParse(testRoom), Key: []byte("a key that everybody knows"), MeetingID: "00000000-0000-4000-8000-000000000003",
		Focus: testFocus, Metadata: testMetadata,
	}
}

func newScene() *scene {
	s := &scene{room: New(testConfig()), now: start, users: make(map[string]*user), names: make(map[jid.JID]string)}
	s.user("focus", "focus@auth.meet.local/focus", []string{"service"})
	return s
}

func (s *scene) user(name, address string, words []string) {
	u := &user{nick: name}
	u.JID = jid.MustParse(address)
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "service":
			u.Service = true
		case "region":
			u.Region = v
		case "nick":
			u.nick = v
		}
	}
	s.users[name], s.names[u.JID] = u, name
}

const (
	clientChildren = `<stats-id>Zed-xyz</stats-id>` +
		`<c hash="sha-1" node="https://jitsi.org/jitsi-meet" ver="+mpajJhafj8jFogLBKsPbQfMgzU=" xmlns="http://jabber.org/protocol/caps"/>` +
		`<SourceInfo>{}</SourceInfo><jitsi_participant_codecList>av1,vp9,vp8,h264</jitsi_participant_codecList>`
	focusChildren = `<priority>0</priority><etherpad xmlns='http://jitsi.org/jitmeet/etherpad'>golden</etherpad>` +
		`<versions xmlns='http://jitsi.org/jitmeet'><component name='focus'>1.1.SNAPSHOT</component></versions>` +
		`<conference-properties xmlns='http://jitsi.org/protocol/focus'><property value='true' key='support-terminate-restart'/></conference-properties>`
)

func (s *scene) step(t *testing.T, line string) []string {
	t.Helper()
	verb, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	arg := ""
	if len(words) > 0 {
		_, arg, _ = strings.Cut(rest, words[0]+" ")
	}
	who := func() *user {
		if len(words) > 0 && s.users[words[0]] != nil {
			return s.users[words[0]]
		}
		t.Fatalf("%q: who?", line)
		return nil
	}
	presence := func(u *user, typ, children string) Output {
		return s.handle(t, u, fmt.Sprintf(`<presence xmlns="jabber:client" to="%s/%s"%s>%s</presence>`, testRoom, u.nick, typ, children))
	}
	switch verb {
	case "room":
		cfg := testConfig()
		for _, w := range words {
			k, v, _ := strings.Cut(w, "=")
			n := 0
			_, _ = fmt.Sscan(v, &n)
			switch k {
			case "brewery":
				cfg.Brewery, cfg.Focus, cfg.Metadata = true, jid.JID{}, jid.JID{}
			case "nofocus":
				cfg.Focus = jid.JID{}
			case "occupants":
				cfg.MaxOccupants = n
			case "held":
				cfg.MaxHeld = n
			case "history":
				cfg.MaxHistory = n
			default:
				t.Fatalf("%q: what is %s?", line, w)
			}
		}
		s.room = New(cfg)
		return nil
	case "user":
		s.user(words[0], words[1], words[2:])
		return nil
	case "show":
		s.xml = words[0] == "xml"
		return nil
	case "pass":
		d, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatal(err)
		}
		s.now = s.now.Add(d)
		return nil
	case "join":
		u := who()
		children := clientChildren + `<nick xmlns="http://jabber.org/protocol/nick">` + words[0] + `</nick>`
		if words[0] == "focus" {
			children = focusChildren
		}
		password := ""
		if _, p, ok := strings.Cut(arg, "password="); ok {
			password = "<password>" + p + "</password>"
		}
		return s.print(presence(u, "", `<x xmlns="http://jabber.org/protocol/muc">`+password+`</x>`+children))
	case "presence":
		return s.print(presence(who(), "", arg))
	case "leave":
		return s.print(presence(who(), ` type="unavailable"`, arg))
	case "gone":
		return s.print(s.room.Gone(who().JID))
	case "destroy":
		return s.print(s.room.Destroy(rest))
	case "send":
		return s.print(s.handle(t, who(), arg))
	}
	t.Fatalf("%q: unknown verb", line)
	return nil
}

func (s *scene) handle(t *testing.T, u *user, xml string) Output {
	t.Helper()
	xml = strings.ReplaceAll(strings.ReplaceAll(xml, "{room}", testRoom), "{LASTID}", s.lastID)
	for name, u := range s.users {
		xml = strings.ReplaceAll(xml, "{"+name+"}", u.JID.String())
	}
	e, err := xmpp.Parse([]byte(xml), xmpp.Limits{})
	if err != nil {
		t.Fatalf("%v in %s", err, xml)
	}
	return s.room.Handle(s.now, u.Sender, e)
}

func (s *scene) print(out Output) (lines []string) {
	for _, d := range out.Deliveries {
		var to []string
		for _, j := range d.To {
			if j != d.Except {
				to = append(to, s.name(j))
			}
		}
		e := d.Stanza.Element
		if e.Name == "iq" {
			s.lastID = e.Attr("id")
		}
		text := s.short(e)
		if s.xml {
			text = e.String()
		}
		lines = append(lines, strings.Join(to, " ")+" <- "+text)
	}
	for _, e := range out.Events {
		line := fmt.Sprintf("event %s %s", kinds[e.Kind], e.Nick)
		data := ""
		if e.Kind == Metadata {
			b, err := json.Marshal(e.Metadata)
			if err != nil {
				panic(err)
			}
			data = string(b)
		}
		for _, s := range []string{string(e.Role), e.Region, e.Reason, data} {
			if s != "" {
				line += " " + s
			}
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	return lines
}

var kinds = map[Kind]string{Entered: "entered", Changed: "changed", Left: "left", Metadata: "metadata", Destroyed: "destroyed"}

func (s *scene) name(j jid.JID) string {
	if n := s.names[j]; n != "" {
		return n
	}
	return j.String()
}

// short prints what matters of a stanza in one line: addresses, muc#user in words, the rest by name.
func (s *scene) short(e *xmpp.Element) string {
	var b strings.Builder
	b.WriteString(e.Name)
	for _, a := range []string{"type", "id", "from"} {
		v := strings.TrimPrefix(strings.TrimPrefix(e.Attr(a), testRoom), "/")
		if a == "id" && len(v) > 16 {
			v = v[:4] + "…"
		}
		if v == "" && a == "from" {
			v = "room"
		}
		if v != "" {
			fmt.Fprintf(&b, " %s=%s", a, v)
		}
	}
	for c := range e.Children {
		switch {
		case c.Is(nsOccupantID, "occupant-id"):
		case c.Is(nsUser, "x"):
			for u := range c.Children {
				b.WriteString(" " + s.mucUser(u))
			}
		case c.Name == "error":
			err, _ := xmpp.ParseError(e)
			fmt.Fprintf(&b, " %s/%v", err.Type, err)
		case c.First() == nil && len(c.Attrs) == 0 && c.Text() == "", c.First() != nil:
			b.WriteString(" " + c.Name)
		default:
			b.WriteString(" " + c.Name)
			if text := c.Text(); text != "" && len(text) < 60 {
				b.WriteString("=" + text)
			}
		}
	}
	return b.String()
}

func (s *scene) mucUser(u *xmpp.Element) string {
	switch u.Name {
	case "status":
		return "status=" + u.Attr("code")
	case "item":
		text := u.Attr("affiliation")
		if r := u.Attr("role"); r != "" {
			text += "/" + r
		}
		if j, err := jid.Parse(u.Attr("jid")); err == nil {
			text += "/" + s.name(j)
		}
		for c := range u.Children {
			text += " " + c.Name + "=" + c.Attr("nick") + c.Text()
			if c.Attr("jid") != "" {
				text += "+jid"
			}
		}
		return text
	}
	return u.Name + u.ChildNamed("reason").Text()
}
