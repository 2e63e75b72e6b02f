package signaling

import (
	"context"
	"strconv"
	"sync"

	"plenum/wire/jid"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// asker is the local part of the address that conference requests over HTTP have for a stock Jicofo. No guest is
// called that.
const asker = "http"

// questions are requests to a stock Jicofo that came over HTTP: its own HTTP server is not needed.
type questions struct {
	mu   sync.Mutex
	last uint64
	open map[string]chan *xmpp.Element
}

// ask sends a request to the stock Jicofo in XMPP and waits for the answer as long as ctx lives.
func (r *router) ask(ctx context.Context, c meet.Conference) (meet.Conference, error) {
	to, err := jid.New(meet.FocusNick, r.names.auth, meet.FocusNick)
	if err != nil {
		return c, err
	}
	q := &r.questions
	answer := make(chan *xmpp.Element, 1)
	q.mu.Lock()
	q.last++
	id := strconv.FormatUint(q.last, 10)
	if q.open == nil {
		q.open = make(map[string]chan *xmpp.Element)
	}
	q.open[id] = answer
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.open, id)
	}()
	ctx, cancel := context.WithTimeout(ctx, requestBudget)
	defer cancel()
	iq := xmpp.IQ("set", "http-"+id, asker+"@"+r.names.domain+"/"+id, to.String(), c.Element())
	if !r.sessions.Deliver(to, xmpp.NewFrame(iq)) {
		return c, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: "The focus is not connected"}
	}
	select {
	case el := <-answer:
		if e, failed := xmpp.ParseError(el); failed {
			return c, e
		}
		return meet.ParseConference(el.First())
	case <-ctx.Done():
		return c, xmpp.StanzaError{Condition: xmpp.ServiceUnavailable, Text: "The focus does not answer"}
	}
}

// answered takes the answer to a request; nobody may be waiting for it any more.
func (q *questions) answered(id string, el *xmpp.Element) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if answer := q.open[id]; answer != nil {
		delete(q.open, id)
		answer <- el
	}
}
