'use strict'
// The page knows videos by names drawn at random, and votes name them; a key that is not here says whose they are.
const { page, questions, pairs } = JSON.parse(document.getElementById('data').textContent)
const $ = (id) => document.getElementById(id)
const SAME = 'same', SHELF = `univid-blind/${page}`
const screens = ['start', 'vote', 'end']
const videos = [...document.querySelectorAll('video')] // left, right
let state = null // {person, place, votes: {'pair/question': {choice, left}}}
let steps = [] // [{pair, sides: [left, right], question}], in this person's order

// Chance that is the same for a person whenever the page is opened: mulberry32, seeded by a hash of a text (FNV-1a).
function chance(text) {
  let seed = 2166136261
  for (const letter of text) seed = Math.imul(seed ^ letter.codePointAt(0), 16777619)
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

function shuffled(list, random) {
  const left = [...list]
  return list.map(() => left.splice(Math.floor(random() * left.length), 1)[0])
}

// Every pair once, in an order and with sides of the person's own.
function plan(person) {
  const random = chance(`${page}/${person.toLowerCase()}`)
  return shuffled(pairs, random).flatMap((pair) => {
    const sides = random() < 0.5 ? pair.videos : [...pair.videos].reverse()
    return pair.questions.map((question) => ({ pair, sides, question }))
  })
}

// What the browser keeps; where it keeps nothing, the page says so.
function stored(name) {
  try {
    return JSON.parse(localStorage.getItem(name))
  } catch {
    return null
  }
}
function store(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value))
  } catch {
    $('forgetful').hidden = false
  }
}
const keep = () => store(`${SHELF}/${state.person.toLowerCase()}`, state)

const tag = (step) => `${step.pair.pair}/${step.question}`
const open = () => steps.findIndex((step) => !state.votes[tag(step)])
const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`
const list = (words) => words.join(', ').replace(/, ([^,]*)$/, ' and $1')

function screen(name) {
  for (const other of screens) $(other).hidden = other !== name
  if (name !== 'vote') for (const video of videos) video.pause()
}

function begin(person) {
  steps = plan(person)
  const kept = stored(`${SHELF}/${person.toLowerCase()}`)
  state = { person, place: 0, votes: {}, ...kept }
  state.place = Math.min(Math.max(0, state.place | 0), steps.length)
  store(SHELF, person)
  keep()
  show()
}

// One question, or, behind the last one, the end.
function show() {
  const given = steps.filter((step) => state.votes[tag(step)]).length
  if (state.place >= steps.length) return finish(given)
  const step = steps[state.place], vote = state.votes[tag(step)]
  screen('vote')
  $('progress').max = steps.length
  $('progress').value = given
  const order = [...new Set(steps.map((each) => each.pair))]
  const place = step.pair.questions.indexOf(step.question) + 1
  const which = step.pair.questions.length > 1 ? ` · question ${place}/${step.pair.questions.length}` : ''
  $('where').textContent = `Pair ${order.indexOf(step.pair) + 1}/${pairs.length}${which}`
  $('ask').textContent = questions[step.question]
  for (const button of $('answers').children) {
    const choice = choices(step)[button.dataset.answer]
    button.setAttribute('aria-pressed', vote ? String(vote.choice === choice) : 'false')
  }
  bring(step)
  usable()
  $('ask').focus({ preventScroll: true })
}

const choices = ({ sides: [left, right] }) => ({ left, right, same: SAME })

// Put the pair of a step on the stage, unless it is there.
function bring({ pair, sides }) {
  $('prompt').hidden = pair.prompt === null
  $('prompt').textContent = pair.prompt ?? ''
  $('differ').hidden = !pair.differ.length
  $('differ').textContent = `These two differ in ${list(pair.differ)}.`
  $('stage').style.setProperty('--ratio', pair.ratio)
  $('stage').classList.toggle('wide', pair.ratio > 1.1)
  $('picture').hidden = pair.picture === null
  const image = $('picture').querySelector('img')
  if (pair.picture) image.src = `media/${pair.picture}`
  else image.removeAttribute('src')
  if ($('stage').dataset.pair === String(pair.pair) && videos[0].dataset.name === sides[0]) return play(false)
  $('stage').dataset.pair = pair.pair
  videos.forEach((video, side) => {
    video.nextElementSibling.hidden = true
    video.dataset.name = sides[side]
    video.src = `media/${sides[side]}.mp4`
    video.load()
  })
}

// Both from the beginning, as soon as both can; `anew`: also where they are playing.
function play(anew = true) {
  if ($('vote').hidden || videos.some((video) => video.readyState < 3 || video.error)) return
  if (!anew && videos.some((video) => !video.paused)) return
  for (const video of videos) {
    video.currentTime = 0
    video.play().catch(() => {}) // it was stopped again
  }
}

const usable = () => {
  const broken = videos.some((video) => video.error)
  for (const button of $('answers').children) button.disabled = broken
}

for (const video of videos) {
  video.addEventListener('canplay', () => videos.every((each) => each.paused) && play())
  video.addEventListener('ended', () => videos.every((each) => each.ended) && setTimeout(play, 400))
  video.addEventListener('error', () => {
    video.nextElementSibling.textContent = 'This video cannot be shown. Is the folder “media” beside the page, and whole?'
    video.nextElementSibling.hidden = false
    usable()
  })
}

function answer(side) {
  const step = steps[state.place]
  if (videos.some((video) => video.error)) return
  state.votes[tag(step)] = { choice: choices(step)[side], left: step.sides[0] }
  go(1)
}

function go(by) {
  const place = state.place + by
  if (place < 0) return welcome()
  state.place = Math.min(place, steps.length)
  keep()
  show()
}

function finish(given) {
  screen('end')
  const left = steps.length - given
  $('done').textContent = left ? `${plural(left, 'question')} of ${steps.length} still open` : `All ${plural(given, 'answer')} given: thank you!`
  $('open').hidden = !left
  $('saved').textContent = ''
  $('done').focus()
}

function welcome(person = state?.person ?? '') {
  state = null
  screen('start')
  $('person').value = person
  $('person').focus()
}

function save() {
  const votes = steps.flatMap((step) => {
    const vote = state.votes[tag(step)]
    return vote ? [{ pair: step.pair.pair, question: step.question, ...vote }] : []
  })
  const content = {
    format: 'univid-blind-votes', version: 1, page, person: state.person,
    saved: new Date().toISOString(), asked: steps.length, votes,
  }
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + '\n'], { type: 'application/json' }))
  link.download = `votes-${page.slice(0, 6)}-${(state.person.match(/[\p{L}\p{N}]+/gu) ?? ['']).join('-').toLowerCase()}.json`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
  $('saved').textContent = `${plural(votes.length, 'answer')} saved as ${link.download}, in your browser's folder of downloads.`
}

const KEYS = {
  vote: {
    ArrowLeft: () => answer('left'), ArrowRight: () => answer('right'), ArrowDown: () => answer('same'),
    1: () => answer('left'), 2: () => answer('same'), 3: () => answer('right'),
    Backspace: () => go(-1), Enter: () => go(1), ' ': () => play(), s: save,
  },
  end: { s: save, Backspace: () => go(-1), Enter: () => $('open').hidden || $('open').click() },
}
document.addEventListener('keydown', (event) => {
  const act = KEYS[screens.find((name) => !$(name).hidden)]?.[event.key.length === 1 ? event.key.toLowerCase() : event.key]
  const saving = event.key.toLowerCase() === 's'
  if (!act || event.altKey || event.repeat || ((event.ctrlKey || event.metaKey) && !saving)) return
  if (event.target.matches('button') && (event.key === 'Enter' || event.key === ' ')) return // it is pressed
  event.preventDefault()
  act()
})

for (const button of $('answers').children) button.addEventListener('click', () => answer(button.dataset.answer))
for (const button of document.querySelectorAll('.save')) button.addEventListener('click', save)
$('back').addEventListener('click', () => go(-1))
$('on').addEventListener('click', () => go(1))
$('again').addEventListener('click', () => play())
$('look').addEventListener('click', () => go(-1))
$('other').addEventListener('click', () => welcome(''))
$('open').addEventListener('click', () => {
  state.place = open()
  keep()
  show()
})
$('who').addEventListener('submit', (event) => {
  event.preventDefault()
  const person = $('person').value.trim().replace(/\s+/g, ' ')
  if (person) begin(person)
})

const asked = pairs.reduce((sum, pair) => sum + pair.questions.length, 0)
$('size').textContent = `${plural(pairs.length, 'pair')} of videos, ${plural(asked, 'question')} in all. Who made which is hidden, and which one is left is random.`
const kinds = [...new Set(pairs.flatMap((pair) => pair.differ))]
const differing = pairs.filter((pair) => pair.differ.length).length
$('differing').hidden = !kinds.length
$('differing').textContent = `In ${plural(differing, 'pair')} the two videos differ in ${list(kinds)}. Both are shown equally large, each at its own speed, and the shorter one waits for the longer.`
store(SHELF, stored(SHELF) ?? '')
const last = stored(SHELF)
if (last && stored(`${SHELF}/${last.toLowerCase()}`)) begin(last)
else welcome(last ?? '')
