package focus

import (
	"strings"

	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// muteKind returns "audio", "video" or "desktop" for a mute request, and the empty string for anything else.
func muteKind(e *xmpp.Element) string {
	kind, ok := strings.CutPrefix(e.Space, jingle.NSJitMeet+"/")
	if !ok || e.Name != "mute" || kind != "audio" && kind != "video" && kind != "desktop" {
		return ""
	}
	return kind
}

// mute passes a moderator's wish on to the client concerned, which mutes itself; the bridge is not told
// (CORRECTIONS 0.12). Clients report their own unmute after a remote mute, which needs a result only.
func (c *Conference) mute(from *participant, iq, payload *xmpp.Element) {
	prefix := c.cfg.Room.String() + "/"
	on := payload.Text()
	nick, inRoom := strings.CutPrefix(payload.Attr("jid"), prefix)
	target := c.participant(nick)
	switch {
	case on != "true" && on != "false" || !inRoom:
		c.refuse(from.Nick, iq, xmpp.StanzaError{Condition: xmpp.BadRequest})
	case target == nil:
		c.refuse(from.Nick, iq, xmpp.StanzaError{Condition: xmpp.ItemNotFound})
	case target == from:
		c.do(Reply{from.Nick, xmpp.Result(iq)})
	case !from.Owner || on == "false":
		e := xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.NotAllowed})
		c.do(Reply{from.Nick, e.Add(payload)})
	default:
		c.do(Reply{from.Nick, xmpp.Result(iq)})
		c.ask(target, "set", xmpp.New(payload.Space, "mute", "actor", prefix+from.Nick).AddText("true"), nil)
	}
}
