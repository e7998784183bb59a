"""Mistakes with values and classes: what the default codec does not take, and how a class is registered."""

from __future__ import annotations

from . import Mistake

_USER = "class User:\n    def __init__(self, name): self.name = name"

MISTAKES = [
    Mistake(
        before="from collections import namedtuple\nPoint = namedtuple('Point', 'x y')",
        made="ns['home'] = {'at': [Point(1, 2)]}",
        error="ValueTypeError",
        says=("the value['at'][0] is a first_hour.Point", "hutch.register_type(Point)"),
        advice="hutch.register_type(Point); ns['home'] = {'at': [Point(1, 2)]}",
        then="type(ns['home']['at'][0]) is Point",
    ),
    Mistake(
        before="import typing\nclass Move(typing.NamedTuple):\n    left: int",
        made="ns['move'] = Move(1)",
        error="ValueTypeError",
        says=("Convert it with tuple()", "hutch.register_type(Move)"),
        advice="ns['move'] = tuple(Move(1))",
        then="ns['move'] == (1,)",
    ),
    Mistake(
        before="from collections import OrderedDict\nclass Recent(OrderedDict): pass",
        made="ns['recent'] = Recent(a=1)",
        error="ValueTypeError",
        says=("is a first_hour.Recent", "hutch.register_type(Recent)"),
        advice="hutch.register_type(Recent); ns['recent'] = Recent(a=1)",
        then="type(ns['recent']) is Recent and ns['recent'] == {'a': 1}",
    ),
    Mistake(
        before="class Email(str): pass",
        made="ns['mail'] = [Email('ada@example.org')]",
        error="ValueTypeError",
        says=("the value[0] is a first_hour.Email", "Convert it with str()", "hutch.register_type(Email)"),
        advice="hutch.register_type(Email); ns['mail'] = [Email('ada@example.org')]",
        then="type(ns['mail'][0]) is Email",
    ),
    Mistake(
        before="class Tagged(dict): pass\nhutch.register_type(Tagged)\ntagged = Tagged(a=1); tagged.note = 'x'",
        made="ns['tagged'] = tagged",
        error="ValueTypeError",
        says=("attributes beside its built-in value", "encode= and decode="),
        advice="""
        def decode(state):
            made = Tagged(state[0]); made.note = state[1]
            return made
        hutch.register_type(Tagged, encode=lambda t: [dict(t), t.note], decode=decode)
        ns['tagged'] = tagged
        """,
        then="ns['tagged'] == tagged and ns['tagged'].note == 'x'",
    ),
    Mistake(
        before="from collections import defaultdict\ncounts = defaultdict(lambda: 0, a=1)",
        made="ns['counts'] = counts",
        error="ValueTypeError",
        says=("default_factory is not a built-in type", "dict()", "int"),
        advice="ns['counts'] = defaultdict(int, counts)",
        then="ns['counts'] == {'a': 1} and ns['counts'].default_factory is int",
    ),
    Mistake(
        before="import numpy",
        made="ns['mean'] = {'mean': numpy.float32(1.5)}",
        error="ValueTypeError",
        says=("the value['mean'] is a numpy.float32", ".tolist()", "hutch.register_type(numpy.float32)"),
        advice="ns['mean'] = {'mean': numpy.float32(1.5).tolist()}",
        then="type(ns['mean']['mean']) is float",
    ),
    Mistake(
        before="import enum\nclass Colour(enum.Enum):\n    RED = 1",
        made="ns['colours'] = {Colour.RED: 1}",
        error="ValueTypeError",
        says=("a key of the value is a first_hour.Colour", "hutch.register_type(Colour)"),
        advice="hutch.register_type(Colour); ns['colours'] = {Colour.RED: 1}",
        then="ns['colours'][Colour.RED] == 1",
    ),
    Mistake(
        before=_USER,
        made="ns['user'] = User('ada')",
        error="ValueTypeError",
        says=("hutch.register_type(User, encode=..., decode=...)", "CODEC: pickle"),
        advice="""
        hutch.register_type(User, encode=vars, decode=lambda state: User(**state))
        ns['user'] = User('ada')
        """,
        then="ns['user'].name == 'ada'",
    ),
    Mistake(
        before=_USER,
        made="hutch.register_type(User)",
        error="ValueTypeError",
        says=("no recipe", "encode=vars, decode=lambda state: User(**state)"),
        advice="hutch.register_type(User, encode=vars, decode=lambda state: User(**state)); ns['u'] = User('ada')",
        then="ns['u'].name == 'ada'",
    ),
    Mistake(
        before="import uuid\nclass Id(uuid.UUID): pass",
        made="hutch.register_type('app.Id')(Id)",
        error="ValueTypeError",
        says=("a class was expected, not a str", '@hutch.register_type(name="app.User")'),
        advice="hutch.register_type(name='app.Id')(Id); ns['id'] = Id(int=1)",
        then="type(ns['id']) is Id",
    ),
    Mistake(
        before="class Count(int): pass",
        made="hutch.register_type(Count(3))",
        error="ValueTypeError",
        says=("a class was expected, not a Count", "hutch.register_type(User)"),
        advice="hutch.register_type(Count); ns['n'] = Count(3)",
        then="type(ns['n']) is Count",
    ),
    Mistake(
        before="""
        class First(str): pass
        class Second(str): pass
        hutch.register_type(First, name='first-hour.Text')
        """,
        made="hutch.register_type(Second, name='first-hour.Text')",
        error="ValueTypeError",
        says=("'first-hour.Text' already stands for", "pass another name="),
        advice="hutch.register_type(Second, name='first-hour.Second'); ns['t'] = Second('a')",
        then="type(ns['t']) is Second",
    ),
    Mistake(
        before="""
        from hutch.codec import registry
        class Score(float): pass
        hutch.register_type(Score, name='first-hour.Score')
        with store.open('scores') as scores: scores['score'] = Score(1.5)
        del registry._by_name['first-hour.Score'], registry._by_type[Score]  # as in another program
        """,
        made="with store.open('scores') as scores: scores['score']",
        error="CorruptValueError",
        says=("'first-hour.Score', which is not registered", "hutch.register_type(Score, name='first-hour.Score')"),
        advice="""
        hutch.register_type(Score, name='first-hour.Score')
        with store.open('scores') as scores: score = scores['score']
        """,
        then="type(score) is Score",
    ),
    Mistake(
        before="""
        import datetime
        class Zone(datetime.tzinfo):
            def utcoffset(self, moment): return datetime.timedelta(hours=1)
            def dst(self, moment): return None
        now = datetime.datetime(2026, 1, 1, tzinfo=Zone())
        """,
        made="ns['now'] = now",
        error="ValueTypeError",
        says=("a datetime with a tzinfo Zone", "zoneinfo.ZoneInfo", ".astimezone(datetime.UTC)"),
        advice="ns['now'] = now.astimezone(datetime.UTC)",
        then="ns['now'] == now",
    ),
    Mistake(
        made="ns['squares'] = {'all': (n * n for n in range(3))}",
        error="ValueTypeError",
        says=("the value['all'] is a generator", "list()"),
        advice="ns['squares'] = {'all': list(n * n for n in range(3))}",
        then="ns['squares'] == {'all': [0, 1, 4]}",
    ),
    Mistake(
        made="ns['names'] = {'ada': 1}.keys()",
        error="ValueTypeError",
        says=("is a dict_keys", "list()"),
        advice="ns['names'] = list({'ada': 1}.keys())",
        then="ns['names'] == ['ada']",
    ),
    Mistake(
        made="ns['handler'] = len",
        error="ValueTypeError",
        says=("is a builtin_function_or_method", "Store its name"),
        advice="ns['handler'] = len.__name__",
        then="ns['handler'] == 'len'",
    ),
    Mistake(
        made="ns['grid'] = {(0, 1): 'x'}",
        error="ValueTypeError",
        says=("a key of the value is a tuple", "str()", "msgpack"),
        advice="ns['grid'] = {str((0, 1)): 'x'}",
        then="ns['grid'] == {'(0, 1)': 'x'}",
        url="lmdb://first-hour?codec=json",
    ),
]
