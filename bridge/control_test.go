package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"plenum/bridge/conference"
	"plenum/wire/colibri"
	"plenum/wire/xmpp"
)

const (
	audioMedia = `<media type='audio'><payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='111' name='opus' clockrate='48000' channels='2'/>` +
		`<rtp-hdrext xmlns='urn:xmpp:jingle:apps:rtp:rtp-hdrext:0' id='1' uri='urn:ietf:params:rtp-hdrext:ssrc-audio-level'/></media>`
	videoMedia = `<media type='video'><payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='100' name='VP8' clockrate='90000'/>` +
		`<payload-type xmlns='urn:xmpp:jingle:apps:rtp:1' id='96' name='rtx' clockrate='90000'><parameter name='apt' value='100'/></payload-type></media>`
	modify = `<conference-modify xmlns='jitsi:colibri2' `
)

func newEndpoint(id string) string {
	return `<endpoint id='` + id + `' create='true'>` + audioMedia + videoMedia +
		`<transport ice-controlling='true'><sctp/></transport><sources/><capability name='source-names'/><capability name='ssrc-rewriting'/></endpoint>`
}

// try carries out one request and returns the answer, or the error as it goes over the wire.
func try(t *testing.T, b *Bridge, request string) (colibri.ConferenceModified, *xmpp.Element) {
	t.Helper()
	e, err := xmpp.Parse([]byte(request), xmpp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	req, err := colibri.ParseModify(e)
	if err != nil {
		return colibri.ConferenceModified{}, stanzaError(err).Element()
	}
	type outcome struct {
		answer colibri.ConferenceModified
		err    error
	}
	out := make(chan outcome, 1)
	b.control.submit(req, func(answer colibri.ConferenceModified, err error) { out <- outcome{answer, err} })
	o := <-out
	if o.err != nil {
		return o.answer, stanzaError(o.err).Element()
	}
	return o.answer, nil
}

func mustModify(t *testing.T, b *Bridge, request string) colibri.ConferenceModified {
	t.Helper()
	answer, err := try(t, b, request)
	if err != nil {
		t.Fatalf("%s: %s", request, err)
	}
	return answer
}

// TestMatrix is every row of the recorded errors and edge cases, in their order (protocol traces, colibri2 D).
func TestMatrix(t *testing.T) {
	b := start(t, nil)
	const transport = `<transport ice-controlling='true'/>`
	const names = `<capability name='source-names'/>`
	const AV = audioMedia + videoMedia
	type row struct {
		name, request  string
		condition      string // empty: a result
		kind           string
		text, reason   string
		endpoints      string // of the answer
		transport, own bool   // the answer has a transport, the bridge's sources
	}
	for _, r := range []row{
		{name: "create", request: modify + `meeting-id='m1' name='r@conference.meet.local' create='true'><endpoint id='aaaa1111' create='true'>` + AV + transport + `<sources/>` + names + `</endpoint></conference-modify>`,
			endpoints: "aaaa1111", transport: true, own: true},
		{name: "create of an existing conference", request: modify + `meeting-id='m1' name='r@conference.meet.local' create='true'><endpoint id='bbbb2222' create='true'>` + AV + transport + names + `</endpoint></conference-modify>`,
			condition: "conflict", kind: "cancel", text: "Conference already exists for ID: m1", reason: "conference_already_exists"},
		{name: "unknown conference", request: modify + `meeting-id='mX'><endpoint id='bbbb2222' create='true'>` + AV + transport + names + `</endpoint></conference-modify>`,
			condition: "item-not-found", kind: "cancel", text: "Conference not found for ID: mX", reason: "conference_not_found"},
		{name: "no meeting id", request: modify + `/>`, condition: "bad-request", kind: "modify", text: "*"},
		{name: "bad name", request: modify + `meeting-id='m2' name='no jid @' create='true'><endpoint id='bbbb2222' create='true'>` + AV + transport + names + `</endpoint></conference-modify>`,
			condition: "bad-request", kind: "modify", text: "Invalid conference name (not a JID)"},
		{name: "which is not kept", request: modify + `meeting-id='m2' expire='true'/>`,
			condition: "item-not-found", kind: "cancel", text: "Conference not found for ID: m2", reason: "conference_not_found"},
		{name: "without source names", request: modify + `meeting-id='m1'><endpoint id='bbbb2222' create='true'>` + AV + transport + `</endpoint></conference-modify>`,
			condition: "bad-request", kind: "modify", text: "Source name support is mandatory."},
		{name: "without transport", request: modify + `meeting-id='m1'><endpoint id='bbbb2222' create='true'>` + AV + names + `</endpoint></conference-modify>`,
			condition: "bad-request", kind: "modify", text: "Attempt to create endpoint bbbb2222 with no <transport>"},
		{name: "endpoint that exists", request: modify + `meeting-id='m1'><endpoint id='aaaa1111' create='true'>` + AV + transport + names + `</endpoint></conference-modify>`,
			condition: "conflict", kind: "cancel", text: "Endpoint with ID aaaa1111 already exists"},
		{name: "update of an unknown endpoint", request: modify + `meeting-id='m1'><endpoint id='cccc3333'><transport><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='abcd' pwd='abcdefghijklmnopqrstuv'/></transport></endpoint></conference-modify>`,
			condition: "item-not-found", kind: "cancel", text: "Endpoint not found for ID: cccc3333", reason: "unknown_endpoint"},
		{name: "sources for an unknown endpoint", request: modify + `meeting-id='m1'><endpoint id='cccc3333'><sources/></endpoint></conference-modify>`,
			condition: "item-not-found", kind: "cancel", text: "Endpoint not found for ID: cccc3333", reason: "unknown_endpoint"},
		{name: "force-mute of an unknown endpoint", request: modify + `meeting-id='m1'><endpoint id='cccc3333'><force-mute audio='true'/></endpoint></conference-modify>`,
			endpoints: "cccc3333"},
		{name: "expire of an unknown endpoint", request: modify + `meeting-id='m1'><endpoint id='cccc3333' expire='true'/></conference-modify>`,
			endpoints: "cccc3333-"},
		{name: "two created", request: modify + `meeting-id='m1'><endpoint id='cccc3333' create='true'>` + AV + transport + names + `</endpoint><endpoint id='dddd4444' create='true'>` + AV + transport + names + `</endpoint></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Creating or updating media, sources or transport for more than one endpoint in a request.", reason: "feature_not_implemented"},
		{name: "force-mute of two", request: modify + `meeting-id='m1'><endpoint id='aaaa1111'><force-mute audio='true'/></endpoint><endpoint id='cccc3333'><force-mute audio='true' video='true'/></endpoint></conference-modify>`,
			endpoints: "aaaa1111 cccc3333"},
		{name: "relay create", request: modify + `meeting-id='m1'><relay id='other' create='true' mesh-id='0'>` + AV + `<transport ice-controlling='true' use-unique-port='true'><sctp role='client'/></transport></relay></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Octo is disabled in configuration."},
		{name: "two relays", request: modify + `meeting-id='m1'><relay id='o1' expire='true'/><relay id='o2' expire='true'/></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Updating more than one 'relay' in a request.", reason: "feature_not_implemented"},
		{name: "endpoint and relay", request: modify + `meeting-id='m1'><endpoint id='aaaa1111'><force-mute audio='false'/></endpoint><relay id='o1' expire='true'/></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Using both 'relay' and 'endpoint' in a request", reason: "feature_not_implemented"},
		{name: "expire of an unknown relay", request: modify + `meeting-id='m1'><relay id='o1' expire='true'/></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Octo is disabled in configuration."},
		{name: "ICE restart before ICE is up", request: modify + `meeting-id='m1'><endpoint id='aaaa1111'><transport ice-restart='true'/></endpoint></conference-modify>`,
			endpoints: "aaaa1111", transport: true},
		{name: "sctp role client", request: modify + `meeting-id='m1'><endpoint id='eeee5555' create='true'>` + AV + `<transport ice-controlling='true'><sctp role='client'/></transport>` + names + `</endpoint></conference-modify>`,
			condition: "feature-not-implemented", kind: "cancel", text: "Unsupported SCTP role: CLIENT"},
		{name: "sctp port", request: modify + `meeting-id='m1'><endpoint id='ffff6666' create='true'>` + AV + `<transport ice-controlling='true'><sctp port='5001'/></transport>` + names + `</endpoint></conference-modify>`,
			condition: "bad-request", kind: "modify", text: "Specific SCTP port requested, not supported."},
		{name: "visitor with sources", request: modify + `meeting-id='m1'><endpoint id='abab7777' create='true' muc-role='visitor'>` + AV + transport + `<sources><media-source type='audio' id='abab7777-a0'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='1001' name='abab7777-a0'/></media-source></sources>` + names + `</endpoint></conference-modify>`,
			condition: "bad-request", kind: "modify", text: "Attempt to set sources for visitor endpoint abab7777"},
		{name: "rtp-mid-demux without ssrc-rewriting", request: modify + `meeting-id='m1'><endpoint id='acac8888' create='true'>` + AV + transport + names + `<capability name='rtp-mid-demux'/></endpoint></conference-modify>`,
			endpoints: "acac8888", transport: true, own: true},
		{name: "connects", request: modify + `meeting-id='m1'><connects><connect url='wss://x.example/y' protocol='mediajson' type='recorder' audio='true'/></connects></conference-modify>`},
		{name: "unknown element", request: modify + `meeting-id='m1'><foo/></conference-modify>`},
		{name: "endpoint without id", request: modify + `meeting-id='m1'><endpoint create='true'/></conference-modify>`, condition: "bad-request", kind: "modify", text: "*"},
		{name: "unusable remote transport is not an error", request: modify + `meeting-id='m1'><endpoint id='aaaa1111'><transport><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='abcd'/></transport></endpoint></conference-modify>`,
			endpoints: "aaaa1111"},
		{name: "expire of one", request: modify + `meeting-id='m1'><endpoint id='acac8888' expire='true'/></conference-modify>`, endpoints: "acac8888-"},
		{name: "expire of the last", request: modify + `meeting-id='m1'><endpoint id='aaaa1111' expire='true'/></conference-modify>`, endpoints: "aaaa1111-"},
		{name: "ends the conference", request: modify + `meeting-id='m1'><endpoint id='aaaa1111' expire='true'/></conference-modify>`,
			condition: "item-not-found", kind: "cancel", text: "Conference not found for ID: m1", reason: "conference_not_found"},
		{name: "which may come again", request: modify + `meeting-id='m1' create='true'>` + newEndpoint("aaaa1111") + `</conference-modify>`, endpoints: "aaaa1111", transport: true, own: true},
		{name: "expire conference", request: modify + `meeting-id='m1' expire='true'/>`},
		{name: "expire conference again", request: modify + `meeting-id='m1' expire='true'/>`,
			condition: "item-not-found", kind: "cancel", text: "Conference not found for ID: m1", reason: "conference_not_found"},
	} {
		answer, failure := try(t, b, r.request)
		if r.condition != "" {
			if failure == nil {
				t.Errorf("%s: succeeds", r.name)
				continue
			}
			e, _ := xmpp.ParseError(xmpp.New("", "iq", "type", "error").Add(failure))
			c, _ := colibri.ParseError(e)
			if r.text == "*" {
				e.Text = "*"
			}
			if e.Condition != r.condition || e.Type != r.kind || e.Text != r.text || c.Reason != r.reason {
				t.Errorf("%s: %s", r.name, failure)
			}
			if r.reason == colibri.UnknownEndpoint && c.Endpoint != "cccc3333" {
				t.Errorf("%s: names %q", r.name, c.Endpoint)
			}
			continue
		}
		if failure != nil {
			t.Errorf("%s: %s", r.name, failure)
			continue
		}
		var ids []string
		described := false
		for _, e := range answer.Endpoints {
			id := e.ID
			if e.Expire {
				id += "-"
			}
			ids = append(ids, id)
			described = described || e.Transport != nil && e.Transport.ICE != nil && e.Transport.ICE.Fingerprints[0].Setup == "actpass"
		}
		if strings.Join(ids, " ") != r.endpoints || described != r.transport || (answer.Sources != nil) != r.own {
			t.Errorf("%s: answered %s", r.name, answer.Element())
		}
	}
}

func TestAnswerToCreate(t *testing.T) {
	b := start(t, func(c *Config) { c.Advertise = []string{"203.0.113.9"} })
	first := mustModify(t, b, modify+`meeting-id='m1' name='r@c.x' create='true'>`+newEndpoint("aaaa1111")+`</conference-modify>`)
	second := mustModify(t, b, modify+`meeting-id='m1'>`+newEndpoint("bbbb2222")+`</conference-modify>`)
	if diff := cmp.Diff(first.Sources, second.Sources); diff != "" || len(first.Sources.Media) != 2 {
		t.Errorf("feedback sources differ: %s", diff)
	}
	for i, m := range first.Sources.Media {
		if want := []string{"jvb-a0", "jvb-v0"}[i]; m.ID != want || m.Sources[0].Name != want || m.Sources[0].SSRC == 0 {
			t.Errorf("feedback source %+v", m)
		}
	}
	a, z := first.Endpoints[0].Transport, second.Endpoints[0].Transport
	if a.ICE.Ufrag == z.ICE.Ufrag || a.ICE.Pwd == z.ICE.Pwd || len(a.ICE.Pwd) < 22 || !a.ICE.RTCPMux {
		t.Errorf("credentials %+v, %+v", a.ICE, z.ICE)
	}
	if diff := cmp.Diff(&colibri.SCTP{Port: 5000, Role: "server"}, a.SCTP); diff != "" {
		t.Error(diff)
	}
	if f := a.ICE.Fingerprints[0]; f.Hash != "sha-256" || f.Setup != "actpass" || len(f.Value) != 95 {
		t.Errorf("fingerprint %+v", f)
	}
	if len(a.ICE.Candidates) != 2 || a.ICE.Candidates[0].Type != "host" || a.ICE.Candidates[1].IP != "203.0.113.9" || a.ICE.Candidates[1].RelIP != "127.0.0.1" {
		t.Errorf("candidates %+v", a.ICE.Candidates)
	}
	if len(a.ICE.WebSockets) != 1 || !strings.HasPrefix(a.ICE.WebSockets[0], "ws://"+b.ChannelAddr().String()+"/colibri-ws/jvb1/") {
		t.Errorf("web sockets %v", a.ICE.WebSockets)
	}
	update := mustModify(t, b, modify+`meeting-id='m1'><endpoint id='aaaa1111'><transport><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='Yq3s' pwd='abcdefghijklmnopqrstuv'><rtcp-mux/>`+
		`<fingerprint xmlns='urn:xmpp:jingle:apps:dtls:0' hash='sha-256' setup='active'>`+a.ICE.Fingerprints[0].Value+`</fingerprint></transport></transport><sources/></endpoint></conference-modify>`)
	if diff := cmp.Diff(colibri.ConferenceModified{Endpoints: []colibri.Endpoint{{ID: "aaaa1111"}}}, update); diff != "" {
		t.Errorf("update answered %s", diff)
	}
}

func TestRestartICE(t *testing.T) {
	b := start(t, nil)
	mustModify(t, b, modify+`meeting-id='m1' create='true'/>`)
	first := mustModify(t, b, modify+`meeting-id='m1'>`+newEndpoint("aaaa1111")+`</conference-modify>`).Endpoints[0].Transport.ICE
	restart := func() *colibri.Transport {
		return mustModify(t, b, modify+`meeting-id='m1'><endpoint id='aaaa1111'><transport ice-restart='true'/></endpoint></conference-modify>`).Endpoints[0].Transport
	}
	early := restart()
	if early == nil || early.SCTP != nil || early.ICE.Ufrag != first.Ufrag || early.ICE.Pwd != first.Pwd || early.ICE.Generation != 0 || early.ICE.Fingerprints[0].Setup != "actpass" {
		t.Errorf("before ICE is up: %+v", early)
	}
	mustModify(t, b, modify+`meeting-id='m1'><endpoint id='aaaa1111'><transport><transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='Yq3s' pwd='abcdefghijklmnopqrstuv'><rtcp-mux/>`+
		`<fingerprint xmlns='urn:xmpp:jingle:apps:dtls:0' hash='sha-256' setup='active'>`+first.Fingerprints[0].Value+`</fingerprint></transport></transport></endpoint></conference-modify>`)
	l := b.control.conferences()[0]
	l.endpoint("aaaa1111").connected.Store(true)
	inCore(t, l.core, func() {})
	used := map[string]bool{first.Ufrag: true, first.Pwd: true}
	for n := 1; n < 4; n++ {
		a := restart()
		if a == nil || a.SCTP != nil || a.ICE.Generation != n || used[a.ICE.Ufrag] || used[a.ICE.Pwd] || a.ICE.Fingerprints[0].Setup != "passive" || len(a.ICE.Candidates) == 0 {
			t.Fatalf("restart %d: %+v", n, a)
		}
		used[a.ICE.Ufrag], used[a.ICE.Pwd] = true, true
	}
	if m := b.metrics; m.iceRestarts.Load() != 3 || m.iceRestartsEarly.Load() != 1 {
		t.Errorf("counted %d restarts, %d early ones", m.iceRestarts.Load(), m.iceRestartsEarly.Load())
	}
	if _, fault := try(t, b, modify+`meeting-id='m1'><endpoint id='nobody'><transport ice-restart='true'/></endpoint></conference-modify>`); fault == nil {
		t.Error("restarted nobody")
	}
}

func TestGracefulShutdownRefuses(t *testing.T) {
	b := start(t, nil)
	mustModify(t, b, modify+`meeting-id='m1' create='true'>`+newEndpoint("aaaa1111")+`</conference-modify>`)
	b.state.begin()
	mustModify(t, b, modify+`meeting-id='m1'>`+newEndpoint("bbbb2222")+`</conference-modify>`)
	_, failure := try(t, b, modify+`meeting-id='m2' create='true'>`+newEndpoint("aaaa1111")+`</conference-modify>`)
	e, _ := xmpp.ParseError(xmpp.New("", "iq", "type", "error").Add(failure))
	c, _ := colibri.ParseError(e)
	if e.Condition != xmpp.ServiceUnavailable || e.Text != "In graceful shutdown" || c.Reason != colibri.GracefulShutdown {
		t.Errorf("%s", failure)
	}
}

// TestOrder pipelines 200 requests for one conference, among them its creation: each answer depends on those before.
func TestOrder(t *testing.T) {
	b := start(t, nil)
	var mu sync.Mutex
	var got []string
	var all sync.WaitGroup
	submit := func(request string) {
		e, err := xmpp.Parse([]byte(request), xmpp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		req, err := colibri.ParseModify(e)
		if err != nil {
			t.Fatal(err)
		}
		all.Add(1)
		b.control.submit(req, func(answer colibri.ConferenceModified, err error) {
			defer all.Done()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				got = append(got, err.Error())
				return
			}
			got = append(got, answer.Endpoints[0].ID)
		})
	}
	submit(modify + `meeting-id='m1' create='true'>` + newEndpoint("e0") + `</conference-modify>`)
	want := []string{"e0"}
	for i := 1; i < 100; i++ {
		id := fmt.Sprint("e", i)
		submit(modify + `meeting-id='m1'>` + newEndpoint(id) + `</conference-modify>`)
		submit(modify + `meeting-id='m1'><endpoint id='` + id + `'><sources/></endpoint></conference-modify>`)
		want = append(want, id, id)
	}
	submit(modify + `meeting-id='m1'><endpoint id='e0' expire='true'/></conference-modify>`)
	want = append(want, "e0")
	all.Wait()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestConferencesDoNotWait holds one conference's lane and works 50 others meanwhile.
func TestConferencesDoNotWait(t *testing.T) {
	b := start(t, nil)
	hold, held := make(chan struct{}), make(chan struct{})
	b.control.enqueue("slow", func(*meeting) { close(held); <-hold }, func(error) {})
	<-held
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for j := range 4 {
				create := ""
				if j == 0 {
					create = "create='true'"
				}
				answer, failure := try(t, b, modify+fmt.Sprintf(`meeting-id='m%d' %s>`, i, create)+newEndpoint(fmt.Sprint("e", j))+`</conference-modify>`)
				if failure != nil || len(answer.Endpoints) != 1 {
					t.Errorf("conference %d: %s", i, failure)
				}
			}
		})
	}
	all.Wait()
	close(hold)
	if n := len(b.control.conferences()); n != 50 {
		t.Errorf("%d conferences", n)
	}
}

func TestTooManyWaiting(t *testing.T) {
	b := start(t, nil)
	hold, held := make(chan struct{}), make(chan struct{})
	b.control.enqueue("m", func(*meeting) { close(held); <-hold }, func(error) {})
	<-held
	var refusedN int
	for range maxQueued + 10 {
		b.control.enqueue("m", func(*meeting) {}, func(err error) {
			var e xmpp.StanzaError
			if errors.As(err, &e) && e.Condition == xmpp.ResourceConstraint {
				refusedN++
			}
		})
	}
	close(hold)
	if refusedN != 10 {
		t.Errorf("%d refused", refusedN)
	}
}

func TestSweep(t *testing.T) {
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	advance := func(d time.Duration) time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(d); return now }
	b := start(t, func(c *Config) { c.Now = clock; c.SweepInterval = time.Hour })
	count := func() int { return len(b.control.conferences()) }

	mustModify(t, b, modify+`meeting-id='empty' create='true'/>`)
	mustModify(t, b, modify+`meeting-id='unheard' create='true'>`+newEndpoint("a")+`</conference-modify>`)
	mustModify(t, b, modify+`meeting-id='alive' create='true'>`+newEndpoint("a")+`</conference-modify>`)
	alive := func() {
		for _, l := range b.control.conferences() {
			if l.meeting.id == "alive" {
				l.endpoint("a").alive()
			}
		}
	}
	alive()
	b.control.sweep(advance(19 * time.Second))
	if n := count(); n != 3 {
		t.Fatalf("%d conferences after 19 s", n)
	}
	b.control.sweep(advance(2 * time.Second))
	eventually(t, "the empty one goes after 20 s", func() bool { return count() == 2 })
	b.control.sweep(advance(34 * time.Second))
	alive()                                    // at 55 s
	b.control.sweep(advance(55 * time.Second)) // 110 s: 55 s of silence
	if n := count(); n != 2 {
		t.Fatalf("%d conferences after 55 s of silence", n)
	}
	b.control.sweep(advance(9 * time.Second)) // 119 s: 64 s of silence
	eventually(t, "alive goes after 60 s of silence, and its conference with it", func() bool { return count() == 1 })
	b.control.sweep(advance(2 * time.Second))
	eventually(t, "unheard goes after 2 min", func() bool { return count() == 0 })
}

func TestSourcesOf(t *testing.T) {
	e, err := xmpp.Parse([]byte(modify+`meeting-id='m'><endpoint id='b'><sources>
	 <media-source type='audio' id='b-a0'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='1001' name='b-a0'/></media-source>
	 <media-source type='video' id='b-v0'>
	  <source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='1' name='b-v0' videoType='CAMERA'/><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='11'/>
	  <source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='2'/><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='12'/>
	  <ssrc-group xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' semantics='FID'><source ssrc='1'/><source ssrc='11'/></ssrc-group>
	  <ssrc-group xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' semantics='SIM'><source ssrc='1'/><source ssrc='2'/></ssrc-group>
	  <ssrc-group xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' semantics='FID'><source ssrc='2'/><source ssrc='12'/></ssrc-group></media-source>
	 <media-source type='video' id='b-v1'><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='3' name='b-v1' videoType='desktop'/><source xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' ssrc='13'/>
	  <ssrc-group xmlns='urn:xmpp:jingle:apps:rtp:ssma:0' semantics='FID'><source ssrc='3'/><source ssrc='13'/></ssrc-group></media-source>
	</sources></endpoint></conference-modify>`), xmpp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	req, err := colibri.ParseModify(e)
	if err != nil {
		t.Fatal(err)
	}
	want := []conference.Source{
		{Name: "b-a0", Kind: conference.Audio, Encodings: []conference.Encoding{{SSRC: 1001}}},
		{Name: "b-v0", Kind: conference.Video, VideoType: "camera", Encodings: []conference.Encoding{{SSRC: 1, RTX: 11}, {SSRC: 2, RTX: 12}}},
		{Name: "b-v1", Kind: conference.Video, VideoType: "desktop", Encodings: []conference.Encoding{{SSRC: 3, RTX: 13}}},
	}
	if diff := cmp.Diff(want, sourcesOf(*req.Endpoints[0].Sources)); diff != "" {
		t.Error(diff)
	}
}

func TestMediaOfOnlyAdds(t *testing.T) {
	m := mediaOf(conference.Media{}, []colibri.Media{})
	for range 2 {
		e, _ := xmpp.Parse([]byte(modify+`meeting-id='m'><endpoint id='b'>`+audioMedia+videoMedia+`</endpoint></conference-modify>`), xmpp.Limits{})
		req, _ := colibri.ParseModify(e)
		m = mediaOf(m, req.Endpoints[0].Media)
	}
	m = mediaOf(m, nil)
	want := conference.Media{
		PayloadTypes: []conference.PayloadType{{PT: 111, Codec: "opus", Clockrate: 48000}, {PT: 100, Codec: "VP8", Clockrate: 90000}, {PT: 96, Codec: "rtx", Clockrate: 90000, RTXFor: 100}},
		Extensions:   conference.Extensions{AudioLevel: 1},
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Error(diff)
	}
}

// TestPanic: a conference that panics is ended alone, and may be created again.
func TestPanicEndsOneConference(t *testing.T) {
	b := start(t, nil)
	join(t, b, "m1", "aaaa1111", "")
	url := join(t, b, "m2", "aaaa1111", "")
	p := open(t, url)
	p.sync()
	for _, l := range b.control.conferences() {
		if l.meeting.id == "m1" {
			l.do(func(time.Time) { panic("on purpose") })
		}
	}
	eventually(t, "the conference is ended", func() bool { return !hasConference(b, "m1") })
	_, failure := try(t, b, modify+`meeting-id='m1'><endpoint id='aaaa1111'><sources/></endpoint></conference-modify>`)
	if failure == nil {
		t.Error("it still answers")
	}
	join(t, b, "m1", "aaaa1111", "")
	p.sync()
}

// BenchmarkEndpoint is an endpoint's life as a focus sees it: created, described, expired.
func BenchmarkEndpoint(b *testing.B) {
	bridge, err := New(Config{Media: "127.0.0.1:0", HTTP: "off", Cores: 1})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- bridge.Run(ctx) }()
	defer func() { cancel(); <-done }()
	parse := func(text string) colibri.ConferenceModify {
		e, err := xmpp.Parse([]byte(text), xmpp.Limits{})
		if err != nil {
			b.Fatal(err)
		}
		req, err := colibri.ParseModify(e)
		if err != nil {
			b.Fatal(err)
		}
		return req
	}
	out := make(chan error, 1)
	submit := func(req colibri.ConferenceModify) {
		bridge.control.submit(req, func(_ colibri.ConferenceModified, err error) { out <- err })
		if err := <-out; err != nil {
			b.Fatal(err)
		}
	}
	submit(parse(modify + `meeting-id='m' create='true'>` + newEndpoint("first") + `</conference-modify>`))
	create := parse(modify + `meeting-id='m'>` + newEndpoint("e") + `</conference-modify>`)
	expire := parse(modify + `meeting-id='m'><endpoint id='e' expire='true'/></conference-modify>`)
	for b.Loop() {
		submit(create)
		submit(expire)
	}
}
