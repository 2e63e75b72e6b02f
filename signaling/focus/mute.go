package focus

import (
	"strings"

	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// mute passes a moderator's wish on to the client concerned, which mutes itself; the bridge is not told,
// as with Jicofo. Clients report their own unmute after a remote mute, which needs a result only.
func (c *Conference) mute(from *participant, iq, payload *xmpp.Element) {
	prefix := c.cfg.Room.String() + "/"
	m, err := meet.ParseMute(payload)
	nick, inRoom := strings.CutPrefix(m.JID, prefix)
	target := c.participant(nick)
	switch {
	case err != nil || !inRoom:
		c.refuse(from.Nick, iq, xmpp.StanzaError{Condition: xmpp.BadRequest})
	case target == nil:
		c.refuse(from.Nick, iq, xmpp.StanzaError{Condition: xmpp.ItemNotFound})
	case target == from:
		c.do(Reply{from.Nick, xmpp.Result(iq)})
	case !from.Owner || !m.On:
		e := xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.NotAllowed})
		c.do(Reply{from.Nick, e.Add(payload)})
	default:
		c.do(Reply{from.Nick, xmpp.Result(iq)})
		c.ask(target, "set", meet.Mute{Kind: m.Kind, Actor: prefix + from.Nick, On: true}.Element(), nil)
	}
}
