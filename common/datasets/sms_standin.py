"""Generated text messages, ham and spam, from a small grammar: the stand-in where no real ones can be had."""

import random
import re
import string

HAM, SPAM = 1_740, 260
"""13 % are spam, as in the SMS Spam Collection."""
# Each slot has alternatives, which name other slots in braces; # is a digit.
#
# Ham and spam draw on the same words: "free", "win", "call", "prize" alone tell little. {question} and
# {statement}, followed by the same {end}, differ in the order of their words alone: "did you win", "you did
# win". {quoted} is ham that repeats spam to a friend.
GRAMMAR = """
ham: {short}|{chat}|{chat}|{greeting} {chat}|{greeting} {chat}, {chat}|{chat}. {chat}|{chat} {smile}|
{chat}. {chat} {smile}|{greeting} {name}, {chat}. {chat}. {chat}|{chat}. {chat}. {chat}. {chat} {smile}|
{greeting} {question}? {end}|{question}? {end}|{quoted}
spam: {offer}. {order}|{offer}! {order}. {small}|{opening} {offer}. {order}. {small}|
{opening} {offer}! {offer}. {order}. {small}|{opening} {order}. {small}|{opening} {offer}! {order}|
{greeting} {statement}. {end}|{statement}! {end}
short: {yes}|{yes} {smile}|{yes} {name}|{yes}, {when}|{greeting} {name}|{when}?|{smile}|{yes}, {end}|
{where} {when}|{name}?|{yes} {yes}
chat: are you free {when}|I am free {when}, call me|call me when you get to {where}|{end}|
did {name} win the match {when}|I have no money for {prize}|{name} won {prize} at {where}, so happy|
text me the number of {name}|my new number is 07###-######, reply so I know you got it|
I want to claim the money back for {prize}|it is urgent, {name} lost the mobile at {where}|
the offer from {where} is {price}, should I take it|we meet at {where} {when}|I am at {where} now|
can you pick up {thing} from {where}|sorry, I was at {where} and could not text|{name} says hello|
do not forget {thing} {when}|the bus to {where} costs {price} now|happy birthday {name}|
I will be late, start without me|have you seen {thing}, it was on the table|what is the plan for {when}|
{name} is waiting for you at {where}|thanks for {thing}, you are the best|stop it, I have to work {when}
question: did you {really} win {prize}|is {prize} {really} free|have you {really} got {prize}|
can you {really} claim {prize}|will you {really} get {prize}|are you {really} sent {prize}
quoted: {got} {offer}. {order}. {doubt}|{doubt}. {got} {offer}. {order}|{got} {statement}. {doubt}
got: look what they sent me:|{name} got this text:|another one of these:|my mum got a text that says
doubt: is it real|do not call them|I will not answer that|as if|what should I tell her|lol
yes: ok|yes|no|sure|lol|thanks|k|great|maybe|haha|fine|cool|why|ok then|not yet|of course
smile: :)|:-)|xx|lol|haha|;)|...
opening: URGENT!|Urgent {name}!|Final notice:|Congratulations!|Free message:|WINNER!|{greeting}|Dear {name},
offer: you have won {prize}|your mobile number has won {prize}|claim {prize} for free now|
{prize} is waiting for you|you were chosen for {prize}|get {prize} for only {price}|
your {price} of free credit ends {when}|{name} wants to meet you {when}|half price on {thing} {when}|
free entry to win {prize}|we could not reach you about {prize}
order: call 09{digits} now|call 0800 {digits} to claim|text {word} to 8####|reply {word} {when}|
text {word} to 8#### for more|call us free from a landline on 0800 {digits}|visit www.{word}##.example
small: {price} a minute|cost {price}, over 18 only|reply STOP to end|offer ends {when}|
{price} per text, stop anytime|box {digits}, terms apply
statement: you did {really} win {prize}|{prize} is {really} free|you have {really} got {prize}|
you can {really} claim {prize}|you will {really} get {prize}|you are {really} sent {prize}
digits: #######|## ## ## #|### ####
word: WIN|YES|CLAIM|FREE|GO|PLAY|CASH
end: call me {when}|text me {when}|let me know {when}|reply when you are free|
I have your number, call me back|tell me when I can call you|send me a text from your mobile
really: really|now|finally|still|just|also
prize: the tickets|a holiday|the prize|£{amount} cash|the camera phone|a {amount} pound voucher|
the cinema tickets|the money|a weekend in {town}|the new mobile
thing: the milk|a ringtone|the tickets|your book|some bread|the keys|a cake|the film|the phone|the camera
amount: 1##|2#0|500|1000|2#50
price: £1#|£2.#0|3#p|1.50 pounds|2# pounds|150p
when: now|today|tonight|tomorrow|at #|at # pm|this weekend|on {day}|after work|by {day}|in # hours|soon
day: Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday
where: home|the station|the shop|school|the gym|work|{town}|the cinema|the office|the party
town: Leeds|Rome|Paris|London|Delhi|Cork
name: Sam|Anna|mum|dad|Priya|Tom|Lucy|Ravi|Jo|Maria|uncle|Ben
greeting: hi|hey|hello|good morning|hi there|yo
"""
SLOTS = dict(line.split(": ", 1) for line in GRAMMAR.strip().replace("|\n", "|").splitlines())


def generate_messages() -> list[tuple[str, bool]]:
    """2,000 messages, all different and always the same, in random order; of each, whether it is spam."""
    generator = random.Random(0)

    def fill(slot: str) -> str:
        text = generator.choice(SLOTS[slot].split("|"))
        text = re.sub(r"\{(\w+)\}", lambda match: fill(match[1]), text)
        return re.sub("#", lambda _: generator.choice(string.digits), text)

    is_spam: dict[str, bool] = {}
    for kind, total in (("ham", HAM), ("spam", HAM + SPAM)):
        while len(is_spam) < total:
            is_spam.setdefault(fill(kind), kind == "spam")
    messages = list(is_spam.items())
    generator.shuffle(messages)
    return messages
