import cloakroom from "./index.js";

export default cloakroom;
export declare const load: typeof cloakroom.load;
export declare const login: typeof cloakroom.login;
export declare const logout: typeof cloakroom.logout;
export declare const principal: typeof cloakroom.principal;
export declare const CloakroomError: typeof cloakroom.CloakroomError;
export type Options = cloakroom.Options;
export type Handler = cloakroom.Handler;
export type Session = cloakroom.Session;
export type SessionData = cloakroom.SessionData;
export type Cookie = cloakroom.Cookie;
